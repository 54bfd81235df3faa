"""A run by the clock: what it starts, what a second call does, and what comes back. No training happens here."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import HubertConfig

from modeling_mss import HCodecConfig, HCodecModel, MssConfig, MssForConditionalGeneration
from training_mss import accelerator_run
from training_mss.configuration import load_config
from training_mss.returned import ARCHIVE, receive, send
from training_mss.run_plan import read_plan
from training_mss.run_processes import Processes, StageError

from .tiny import small_corpus, tiny_codec, tiny_config

SHIPPED = "pretrained_mss/codec"
MIB = 2**20


class FakeProcesses(Processes):
    """Commands that leave what the real ones leave, at once."""

    failing: set[str] = set()
    commands: list[tuple[str, list[str], float]] = []

    def start(self, name, command):
        return super().start(name, ["sleep", "60"])

    def run(self, name, command, limit_s, num_threads=1, done=(0,)):
        self.commands.append((name, command, limit_s))
        if name in self.failing:
            raise StageError("failed with 1: for the test")
        output = Path(command[command.index("--output_dir") + 1])
        if name == "pack":
            output.mkdir(parents=True)
            shutil.copy(Path(command[command.index("pack") + 1]) / "manifest.jsonl", output)
        elif name != "score":
            for folder in (output / "final", output / "best"):
                folder.mkdir(parents=True, exist_ok=True)
            save_file({"weight": torch.ones(8)}, output / "final" / "model.safetensors")
            save_file({"encoder.weight": torch.ones(8)}, output / "best" / "separator.safetensors")
            (output / "final" / "README.md").write_text("")


@pytest.fixture
def call(tmp_path, monkeypatch):
    """A call of the program over made-up songs; returns exit code, summary and the commands."""
    songs = small_corpus(tmp_path / "songs")
    minutes = dict.fromkeys(["masks_first", "masks", "hubert", "codec", "separator", "score", "paper_codec"], 2.0)
    plan = {"config": "training.yaml", "codec": SHIPPED, "manifests": [str(songs)], "renders": []}
    plan |= {"source_weights": {"made": 1.0, "render": 1.0}, "minutes": minutes | {"render": 0.001, "paper_speed": 0}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    monkeypatch.setattr(accelerator_run, "Processes", FakeProcesses)
    monkeypatch.setattr(accelerator_run.signal, "signal", lambda number, handler: None)

    def run(minutes: float = 30.0, failing: tuple[str, ...] = ()):
        FakeProcesses.failing, FakeProcesses.commands = set(failing), []
        given = ["--plan", str(tmp_path / "plan.yaml"), "--work_dir", str(tmp_path / "work"), "--minutes", str(minutes)]
        code = accelerator_run.main([*given, "--output_dir", str(tmp_path / "back"), "--render_processes", "1"])
        summary = json.loads((tmp_path / "back" / "summary.json").read_text())
        return code, summary, {name: command for name, command, _ in FakeProcesses.commands}

    return run


def argument(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_all_stages_are_run_for_their_minutes_and_a_second_call_has_nothing_left_to_do(call):
    code, summary, commands = call()
    assert code == 0
    assert set(commands) == {"pack", "masks_first", "masks", "hubert", "codec", "paper_codec", "separator"}
    assert {stage["state"] for stage in summary["stages"].values()} == {"done"}
    assert float(argument(commands["masks"], "--max_train_minutes")) == 2.0
    assert argument(commands["masks"], "--codec") == SHIPPED
    assert 'masks.crops.source_weights={"made": 1.0}' in commands["masks"]  # no song is rendered
    assert argument(commands["separator"], "--codec").endswith("codec/final")
    assert argument(commands["separator"], "--init_from").endswith("masks/best")
    assert call()[2] == {}


def test_a_run_can_go_on_from_a_separator_over_its_codec(call, tmp_path):
    path = tmp_path / "plan.yaml"
    plan = yaml.safe_load(path.read_text()) | {"init_from": "separator"}
    plan["minutes"]["codec"] = 0
    path.write_text(yaml.safe_dump(plan))
    code, _, commands = call()
    assert code == 0 and "codec" not in commands
    assert argument(commands["masks"], "--init_from") == "separator"
    assert argument(commands["separator"], "--init_from").endswith("masks/final")
    assert argument(commands["separator"], "--codec") == SHIPPED


def test_a_stage_that_fails_costs_only_what_needs_it_and_is_tried_again(call):
    code, summary, commands = call(failing=("codec",))
    assert code == 1
    assert summary["stages"]["codec"]["state"].startswith("failed")
    assert argument(commands["separator"], "--codec") == SHIPPED
    code, summary, commands = call()
    assert code == 0 and set(commands) == {"codec"}


def test_songs_of_the_plan_that_cannot_be_packed_end_the_call_at_once(call):
    code, summary, commands = call(failing=("pack",))
    assert code == 1 and set(commands) == {"pack"}
    assert "pack" in summary["stages"]["render"]["state"] and summary["stages"]["masks"]["state"] == "waits for songs"
    assert call()[0] == 0


def test_a_command_that_closes_in_order_when_its_time_is_up_is_done(tmp_path):
    processes = Processes(tmp_path)
    closing = ["sh", "-c", "trap 'exit 130' TERM; sleep 60 & wait"]
    processes.run("training", closing, limit_s=1.0, done=(0, 130))
    for command in (closing, ["sleep", "60"]):
        with pytest.raises(StageError, match="stopped after 1 s"):
            processes.run("score", command, limit_s=1.0)


def test_no_training_starts_that_could_not_end_in_time_and_the_next_call_makes_it(call):
    code, summary, commands = call(minutes=1.0)
    assert code == 0 and set(commands) == {"pack"}
    assert summary["stages"]["masks"]["state"] == "no time left"
    code, summary, commands = call(minutes=2.0)
    assert float(argument(commands["masks"], "--max_train_minutes")) < 2.0 - (25 + 30) / 60 + 1e-6
    assert summary["stages"]["masks"]["state"] == "done"


def whole_run(folder: Path) -> None:
    """What the stages codec and separator leave, with tiny models."""
    codec = tiny_codec()
    model = MssForConditionalGeneration(tiny_config())
    model.codec.load_state_dict({name: codec.state_dict()[name] for name in model.codec.state_dict()})
    for name, part in (("codec", codec), ("separator", model)):
        part.save_pretrained(folder / name / "final")
        (folder / name / "final" / "README.md").write_text("")
        (folder / name / "log.jsonl").write_text('{"step": 1}\n')


def test_what_was_made_comes_back_in_small_files_and_is_put_together_again(tmp_path):
    whole_run(tmp_path / "work")
    assert send(tmp_path / "work", tmp_path / "back", part_mib=0.1, max_mib=50) == []
    sizes = [path.stat().st_size for path in (tmp_path / "back").iterdir()]
    assert len(sizes) > 2 and max(sizes) <= 0.1 * MIB
    assert sum(sizes) < 0.6 * sum(path.stat().st_size for path in (tmp_path / "work").glob("*/final/model.safetensors"))
    assert receive(tmp_path / "back", tmp_path / "home") == ["codec", "logs", "separator"]
    for name, kind in (("codec", HCodecModel), ("separator", MssForConditionalGeneration)):
        made = load_file(tmp_path / "work" / name / "final" / "model.safetensors")
        loaded = kind.from_pretrained(tmp_path / "home" / name).state_dict()
        assert made.keys() == loaded.keys()
        for key, value in made.items():
            torch.testing.assert_close(loaded[key], value.half().float() if value.is_floating_point() else value)


def test_what_does_not_fit_is_left_out_and_named(tmp_path):
    whole_run(tmp_path / "work")
    left_out = send(tmp_path / "work", tmp_path / "back", part_mib=0.1, max_mib=0.2)
    assert "separator" in left_out
    assert sum(path.stat().st_size for path in (tmp_path / "back").glob(f"{ARCHIVE}.*")) <= 0.2 * MIB


def test_a_lost_piece_is_an_error(tmp_path):
    whole_run(tmp_path / "work")
    send(tmp_path / "work", tmp_path / "back", part_mib=0.1, max_mib=50)
    (tmp_path / "back" / f"{ARCHIVE}.1").unlink()
    with pytest.raises(ValueError, match=r"run\.tar\.0"):
        receive(tmp_path / "back", tmp_path / "home")


def test_what_the_plan_makes_fits_what_comes_back():
    config = load_config(read_plan(accelerator_run.PLAN).config)
    hubert = HubertConfig(**config.hubert.model)
    codec_config = HCodecConfig(
        **config.codec.model, semantic_model_config=hubert.to_dict(), semantic_feature_size=hubert.hidden_size
    )
    with torch.device("meta"):
        codec = HCodecModel(codec_config)
        model = MssForConditionalGeneration(MssConfig(**config.separator.model, codec_config=codec_config))
    names = [name for name in model.state_dict() if not name.startswith("codec.")]
    count = sum(value.numel() for value in codec.state_dict().values())
    count += sum(model.state_dict()[name].numel() for name in names)
    options = accelerator_run.parse_arguments(["--output_dir", "back"])
    assert 2 * count < (options.max_mib - 1) * MIB  # and one for the logs
    assert options.max_mib <= 4 * options.part_mib
