"""Discriminative peers, trained by the same script and scored as baselines, and the table that they are rows of."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

import train_accelerate
from benchmarks import ablations
from data_mss.labelling.teachers import load_teacher
from evaluation_mss.baselines import load_baseline
from evaluation_mss.songs import EvaluationSong
from modeling_mss import MssConfig
from modeling_mss.conformer_mss import MssEncoder
from tests.launching import run_training
from tests.tiny import tiny_codec, tiny_training_config
from training_mss.configuration import load_config
from training_mss.peer_step import PeerStage
from training_mss.run_state import RunState, last_state

ROOT = Path(__file__).resolve().parents[1]
PAPER = str(ROOT / "configs" / "paper.yaml")  # has no peer
STEMS = ["vocals", "drums", "bass", "other"]
PACKAGES = {"bs_roformer": "bs_roformer", "htdemucs": "demucs"}  # by architecture


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return tiny_training_config(tmp_path_factory.mktemp("config"))


def arguments(config: Path, corpus: Path, output_dir: Path, architecture: str, *more: str) -> list[str]:
    settings = ["--stage", "peer", "--config", str(config), "--manifests", str(corpus), "--output_dir", str(output_dir)]
    often = ["--logging_steps", "1", "--validation_steps", "4", "--num_workers", "0"]
    fields = [f"peer.model.architecture={architecture}", "peer.optimizer.learning_rate=5e-3", "peer.crops.crop_s=0.48"]
    return [*settings, *often, "--set", *fields, *more]


def read_log(output_dir: Path, part: str) -> list[float]:
    """Values of `part` by step."""
    records = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    return [record[part] for record in records if part in record]


def files_of(architecture: str, final: Path) -> list[str]:
    names = ["htdemucs.safetensors"] if architecture == "htdemucs" else ["bs_roformer.ckpt", "bs_roformer.yaml"]
    return [str(final / name) for name in names]


@pytest.mark.parametrize("architecture", list(PACKAGES))
def test_a_peer_learns_and_resumes_exactly_and_is_a_baseline(tmp_path, config, corpus, architecture):
    pytest.importorskip(PACKAGES[architecture])
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = ["peer.max_steps=4", "peer.generated_crops=1"]
    assert train_accelerate.main(arguments(config, corpus, whole, architecture, *more)) == 0
    for steps in (2, 4):
        more = [f"peer.max_steps={steps}", "--resume"]
        assert train_accelerate.main(arguments(config, corpus, stopped, architecture, *more)) == 0
    losses = read_log(whole, "train/loss")
    assert min(losses[-2:]) < losses[0] and losses == read_log(stopped, "train/loss")
    more = ["peer.max_steps=2", "peer.mixed_precision=bf16"]
    run_training(arguments(config, corpus, tmp_path / "half", architecture, *more), 1)
    half = read_log(tmp_path / "half", "train/loss")
    assert half == pytest.approx(losses[:2], rel=2e-2) and half != losses[:2]
    assert last_state(whole).step == 4 and last_state(whole).train_seconds > 0
    for score in ("validation/loss", "validation/usdr", "validation/si_sdr/vocals"):
        assert read_log(whole, score) == read_log(stopped, score)[-1:]
    assert "CC0-1.0" in (whole / "final" / "README.md").read_text()
    assert list(whole.rglob("vocals_estimate.wav"))

    system = load_baseline(architecture, *files_of(architecture, whole / "final"), device="cpu")
    assert system.name == architecture
    references = 0.1 * torch.randn(4, 2, 44100)
    song = EvaluationSong("song", "song", 44100, references, references.sum(dim=0), STEMS)  # stereo, another rate
    estimates = system.separate(song)
    assert list(estimates) == STEMS
    assert all(estimate.shape == (2, 44100) and estimate.abs().max() > 1e-4 for estimate in estimates.values())


@pytest.mark.parametrize("architecture", list(PACKAGES))
def test_what_is_exported_is_the_network(tmp_path, config, architecture):
    pytest.importorskip(PACKAGES[architecture])
    stage = PeerStage(load_config(config, [f"peer.model.architecture={architecture}"]))
    stage.export(tmp_path)
    checkpoint, *config_file = files_of(architecture, tmp_path)
    teacher = load_teacher(architecture, checkpoint=checkpoint, config=next(iter(config_file), None), device="cpu")
    assert teacher.sampling_rate == 48000 and teacher.model.audio_channels == 1
    ours, theirs = stage.model.state_dict(), teacher.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    mixture = torch.randn(1, stage.num_samples)
    stage.model.eval()
    with torch.no_grad():  # HTDemucs hears as long a segment as in training: nothing is cut or filled up
        torch.testing.assert_close(teacher.model(mixture[None]).sum(), stage.model(mixture[None]).sum())


def test_wrong_usage_says_what_to_do(tmp_path, config, corpus, capsys, monkeypatch):
    def fails(architecture: str, *more: str) -> str:
        assert train_accelerate.main(arguments(config, corpus, tmp_path, architecture, *more)) == 1
        return capsys.readouterr().err

    assert "'bs_roformer' or 'htdemucs'" in fails("spleeter")
    assert "must leave out ['stereo']" in fails("bs_roformer", "peer.model.bs_roformer.stereo=true")
    assert "must say ['dim']" in fails("bs_roformer", "peer.model.bs_roformer={depth: 2}", "--config", PAPER)
    assert "Use 'device'" in fails("htdemucs", "peer.crops.input=bank")
    assert "['chanels']" in fails("htdemucs", "peer.model.htdemucs.chanels=4")
    for architecture, package in PACKAGES.items():
        monkeypatch.setitem(sys.modules, f"{package}.{architecture}", None)  # not there
        named = "pip install demucs" if package == "demucs" else "pip install BS-RoFormer"
        assert named in fails(architecture)


def test_the_shipped_tables_have_rows_that_can_be_built():
    """Every row of the tables: its configuration loads, its model has about as many weights as the others."""

    def read(name: str) -> ablations.Ablations:
        options = ["--config", str(ROOT / "configs" / name), "--codec", "codec", "--manifests", "songs"]
        return ablations.Ablations(ablations.parse_arguments([*options, "--output_dir", "nowhere"]))

    rows = {row: facts["config"]["separator"] for row, facts in read("ablations_masks.yaml").facts.items()}
    of_masks = {row: (part["model"]["masked_conditioning"], part["freeze_encoder"]) for row, part in rows.items()}
    assert of_masks == {"told": (True, True), "untold": (False, True), "together": (True, False)}
    rows = {row: facts["config"]["masks"]["crops"] for row, facts in read("ablations_data.yaml").facts.items()}
    changed = {row: {key for key, value in crops.items() if value != rows["main"][key]} for row, crops in rows.items()}
    parts = ("silence", "reverb", "bus", "lossy", "eq")
    singles = {f"no_{part}": {f"{part}_probability"} for part in parts}
    songs = {row: {"source_weights"} for row in ("songs_before", "all_known", "no_teacher")}
    before = {"stem_level_db", *(f"{part}_probability" for part in parts[:-1])}
    assert changed == {
        **{row: set() for row in ("start", "main", "seed_1")}, **songs, "changes_before": before,
        "no_levels": {"stem_level_db"}, "no_speed": {"max_semitones"}, **singles,
    }  # fmt: skip
    assert all(
        rows["main"][f"{part}_probability"] > 0 and not rows[f"no_{part}"][f"{part}_probability"] for part in parts
    )
    for name in ("ablations.yaml", "ablations_demo.yaml"):
        table = read(name)
        seeds, paper = ["seed_1", "seed_2"], ["a1", "a2", "a3"]
        assert list(table.facts)[:6] == ["main", *seeds, *paper] and len(table.facts) == 12
        assert {row: facts["train"][1:] for row, facts in table.facts.items() if facts["train"]} == {
            "seed_1": ["1"],
            "seed_2": ["2"],
        }
        options = {}
        for row, facts in table.facts.items():
            config = load_config(table.config, table.overrides(row))
            if facts["stage"] == "peer":
                pytest.importorskip(PACKAGES[config.peer.model.architecture])
                assert config.peer.model.architecture == row
                weights = sum(weight.numel() for weight in PeerStage(config).model.parameters())
                assert weights == pytest.approx(22e6 if name == "ablations.yaml" else 5e6, rel=0.1)
            else:
                codec = {"num_codebooks": config.codec.model["num_codebooks"]}
                model = MssConfig(**config.separator.model, codec_config=codec)
                options[row] = [model.prefix_stride, model.aligned_conditioning, model.track_embeddings]
                options[row] += [model.code_embedding, model.conditional_encoder, model.track_generation]
        on = [2, True, True, "codebook", "conformer", "sequential"]
        differ = {row: [place for place in range(6) if values[place] != on[place]] for row, values in options.items()}
        singles = ["no_prefix_stride", "no_aligned_conditioning", "no_track_embeddings", "no_code_embedding"]
        expected = {"main": [], "a1": [4], "a2": [], "a3": [2, 5], "seed_1": [], "seed_2": []}
        expected |= {row: [i] for i, row in enumerate(singles)}
        assert differ == expected


def test_the_table_of_rivals_has_equal_rows():
    options = ["--codec", "codec", "--manifests", "songs", "--output_dir", "nowhere", "--minutes", "60"]
    options += ["--config", str(ROOT / "configs" / "ablations_rivals.yaml")]
    table = ablations.Ablations(ablations.parse_arguments([*options, "--rows", "untold", "both", "masks"]))
    assert table.chosen == ["masks_half", "untold", "both", "masks"]
    facts = table.facts
    minutes = {name: row["minutes"] + row.get("after", {"minutes": 0})["minutes"] for name, row in facts.items()}
    assert minutes == {name: 30 if name == "masks_half" else 60 for name in facts}
    both, untold = (facts[name]["config"]["separator"]["model"] for name in ("both", "untold"))
    assert both == untold | {"masked_conditioning": True} and both != untold
    seeds = [facts[f"masks{seed}"] for seed in ("", "_seed_1", "_seed_2")]
    assert len({str(row["train"]) for row in seeds}) == 3
    assert all(row | {"train": None} == seeds[0] | {"train": None} for row in seeds)
    weights, tokens = {}, facts["tokens"]["config"]["separator"]["model"]
    for name in ("masks", "no_conv_stem"):
        config = facts[name]["config"]
        encoder = MssEncoder(MssConfig(**config["separator"]["model"]).encoder_config)
        weights[name] = sum(weight.numel() for weight in encoder.parameters())
    assert weights["no_conv_stem"] == pytest.approx(weights["masks"], rel=0.01) and not tokens["mask_head"]
    songs, used = ("source_weights", "crop_s", "remix_probability", "max_semitones", "eq_gain_db", "gain_range"), set()
    for name, row in facts.items():
        part = row["config"][row["stage"]]
        assert part["optimizer"]["final_share"] == 0.05
        assert part["mixed_precision"] == ("no" if name == "htdemucs" else "bf16")
        used.add(json.dumps([part["crops"][field] for field in songs], sort_keys=True))
    assert len(used) == 1


def table_arguments(folder: Path, corpus: Path, config: Path, rows: dict, **fields) -> list[str]:
    table = {"config": str(config), "rows": rows, "train": ["--num_workers", "0"], **fields}
    (folder / "table.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    settings = ["--config", str(folder / "table.yaml"), "--codec", str(folder / "codec"), "--manifests", str(corpus)]
    return [*settings, "--output_dir", str(folder / "out")]


def test_rows_are_trained_and_scored_in_one_table(tmp_path, config, corpus, capsys):
    pytest.importorskip("demucs")
    tiny_codec().save_pretrained(tmp_path / "codec")
    few = {"max_steps": 2}
    masks = {"separator": {"model": {"mask_head": True}, "freeze_encoder": True}}
    rows = {
        "masks": {"stage": "masks", "changes": masks, "minutes_share": 0.6},
        "both": {"changes": masks, "after": "masks", "minutes_share": 0.4},
        "htdemucs": {"stage": "peer", "changes": {"peer": {"model": {"architecture": "htdemucs"}}}},
    }
    evaluate = ["--split", "validation", "--metrics", "usdr", "--excerpt_s", "1", "--outputs", "masked", "filtered"]
    crops = {"crop_s": 0.96, "batch_size": 2, "input": "files", "source_weights": None}
    shared = {
        "masks": {**few, "crops": crops, "generated_crops": 0},
        "separator": few,
        "peer": {**few, "optimizer": {"learning_rate": 1e-5}},
    }
    settings = table_arguments(tmp_path, corpus, config, rows, shared=shared, evaluate=evaluate)
    assert ablations.main(settings) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: row["steps"] for name, row in result["rows"].items()} == dict.fromkeys(rows, 2)
    assert "accuracy/vocals" in result["rows"]["both"]["validation"]
    assert "usdr" in result["rows"]["htdemucs"]["validation"] and result["rows"]["htdemucs"]["learning_rate"] > 0
    # Outputs of all kinds in one call, and each system beside the first model.
    systems = json.loads((tmp_path / "out" / "scores" / "summary.json").read_text())["systems"]
    assert list(systems) == ["htdemucs", "masks masked", "both masked", "both filtered"] == list(result["scores"])
    assert all(list(scores) == ["usdr"] for scores in result["scores"].values())
    others = {name: entry["reference"] for name, entry in systems.items() if name != "masks masked"}
    assert others == dict.fromkeys(others, "masks masked")
    assert systems["htdemucs"]["differences"]["usdr"]["mean"]["mean"] != 0
    assert systems["both masked"]["differences"]["usdr"]["mean"]["mean"] == 0  # the encoder was left as it was


FAKE_TRAINING = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output_dir") + 1])
if folder.name == "bad":
    sys.exit("out of memory")
if folder.name == "half":
    time.sleep(1)
if "--init_from" in sys.argv and not (Path(sys.argv[sys.argv.index("--init_from") + 1]).parent / "final").is_dir():
    sys.exit("started too early")
if folder.name == "slow":  # as training does: what was asked to end leaves all that it has, and calls it a success
    received = []
    signal.signal(signal.SIGTERM, lambda *arguments: received.append(arguments))
    (folder / "started").touch()
    while not received:
        time.sleep(0.01)
    time.sleep(0.5)
(folder / "final").mkdir(exist_ok=True)
places = [os.environ.get(name, "-") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
(folder / "final" / "README.md").write_text(" ".join([*places, *sys.argv]))
"""


FAKE_SCORING = """
import os, sys
from pathlib import Path
with open(Path(__file__).with_suffix(".log"), "a") as log:
    log.write(os.environ.get("CUDA_VISIBLE_DEVICES", "-") + " " + " ".join(sys.argv[1:]) + chr(10))
sys.exit(3 if "--fail" in sys.argv and "0" in sys.argv else 0)
"""


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """Lines of what was asked of `mss-lm`, while neither training nor scoring takes place."""
    (tmp_path / "fake.py").write_text(FAKE_TRAINING)
    (tmp_path / "scoring.py").write_text(FAKE_SCORING)
    monkeypatch.setattr(ablations, "SCRIPT", tmp_path / "fake.py")
    monkeypatch.setattr(ablations, "MSS_LM", [sys.executable, str(tmp_path / "scoring.py")])
    return tmp_path / "scoring.log"


def test_rows_share_the_gpus_and_a_bad_one_does_not_stop_the_others(
    tmp_path, config, corpus, calls, capsys, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    rows = {name: {"changes": {"separator": {"max_steps": 7}}} for name in ("bad", "one", "two")}
    settings = table_arguments(tmp_path, corpus, config, rows, evaluate=["--codec_roundtrip"])
    assert ablations.main(settings) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["errors"] == {"bad": "out of memory"} and list(result["rows"]) == ["one", "two"]
    notes = [(tmp_path / "out" / name / "final" / "README.md").read_text() for name in ("one", "two")]
    assert {note.split()[0] for note in notes} <= {"2", "5"}
    assert "--max_train_minutes 10 --set separator={max_steps: 7} --codec" in notes[0]
    one, two = (f"{name}={tmp_path}/out/{name}/final" for name in ("one", "two"))
    asked = f"--codec {tmp_path}/codec --model {one} {two} --codec_roundtrip --shard_index 0 --num_shards 2"
    first, second = sorted(calls.read_text().splitlines())  # excerpts are shared like rows
    assert first.startswith("2 evaluate ") and first.endswith(asked)
    assert second == first.replace("2 evaluate", "5 evaluate").replace("--shard_index 0", "--shard_index 1")

    (tmp_path / "out" / "two" / "final" / "README.md").unlink()
    assert ablations.main([*settings, "--rows", "one", "two"]) == 0  # alone, and scored beside what is there
    assert "one: is there already" in capsys.readouterr().out
    assert sorted(calls.read_text().splitlines()) == sorted([first, second] * 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert ablations.devices(jobs=1) == [None]
    assert ablations.main([*settings, "--jobs", "2"]) == 1
    assert "--jobs 2 is for CPUs" in capsys.readouterr().err


def test_a_shard_that_fails_is_said(tmp_path, config, corpus, calls, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert ablations.main(table_arguments(tmp_path, corpus, config, {"one": {}}, evaluate=["--fail"])) == 1
    errors = json.loads(capsys.readouterr().out.splitlines()[-1])["errors"]
    assert errors == {"evaluate": "mss-lm evaluate ended with [3, 0], see above"}


def test_a_row_that_is_interrupted_does_not_count_as_finished(tmp_path, config, corpus, calls, capsys):
    """Also if somebody insists while it ends."""
    settings = table_arguments(tmp_path, corpus, config, {"slow": {}})

    def interrupt():
        while not (tmp_path / "out" / "slow" / "started").exists():
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    before = {number: signal.getsignal(number) for number in ablations.STOP_SIGNALS}
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert ablations.main(settings) == 130
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out" / "slow" / "final").exists() and not calls.exists()


def test_rows_share_the_cores_of_a_cpu(tmp_path, config, corpus, calls, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    rows = {"one": {}, "two": {}, "three": {}}
    assert ablations.main([*table_arguments(tmp_path, corpus, config, rows), "--jobs", "2"]) == 0
    notes = [(tmp_path / "out" / name / "final" / "README.md").read_text() for name in rows]
    assert {note.split()[1] for note in notes} == {"3"}
    assert ablations.main([*table_arguments(tmp_path, corpus, config, rows), "--jobs", "0"]) == 1


def test_a_row_waits_for_the_masks_that_it_comes_after(tmp_path, config, corpus, calls, capsys, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    rows = {
        "told": {"after": "half", "minutes_share": 0.25},
        "half": {"stage": "masks", "minutes_share": 0.5},
        "bad": {"stage": "masks", "minutes_share": 0.5},
        "lost": {"after": "bad", "minutes_share": 0.5},
        "one": {},
    }
    settings = table_arguments(tmp_path, corpus, config, rows)
    assert ablations.main([*settings, "--jobs", "2"]) == 1
    *lines, result = capsys.readouterr().out.splitlines()
    assert json.loads(result)["errors"] == {
        "bad": "out of memory",
        "lost": "not trained, since bad, which it comes after, failed",
    }
    started = [line.split(":")[0] for line in lines if ": training" in line]
    assert started == ["half", "bad", "one", "told"]  # the others meanwhile
    note = (tmp_path / "out" / "told" / "final" / "README.md").read_text()
    assert "--max_train_minutes 2.5 " in note and f"--init_from {tmp_path}/out/half/best" in note

    assert ablations.main([*table_arguments(tmp_path, corpus, config, {**rows, "told": {}}), "--rows", "one"]) == 1
    assert "'told' in" in (error := capsys.readouterr().err) and "another minutes" in error
    shutil.rmtree(tmp_path / "out" / "told")
    assert ablations.main([*table_arguments(tmp_path, corpus, config, rows), "--rows", "told", "--jobs", "2"]) == 0
    shutil.rmtree(tmp_path / "out" / "half")
    assert ablations.main([*settings, "--rows", "one", "--jobs", "2"]) == 1
    assert "from masks of 'half' that are no longer in" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out" / "told")
    assert ablations.main([*settings, "--rows", "told", "--jobs", "2"]) == 0  # and what it comes after
    assert (tmp_path / "out" / "half" / "final").is_dir()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"after": "none"}, "comes after 'none': masks and separators may come after a row"),
        ({"after": "one"}, "here ['half']"),
        ({"after": "half"}, "must add up to at most 1"),
        ({"after": "half", "stage": "peer"}, "of stage 'peer' comes after"),
        ({"minutes_share": 0}, "above 0 and at most 1, got 0"),
        ({"after": "half", "minutes_share": 0.5, "train": ["--init_from", "masks"]}, "may have --init_from"),
        ({"stage": "peer"}, "A peer is called as the baseline that scores it, "),
    ],
)
def test_rows_that_cannot_come_after_others(tmp_path, config, corpus, capsys, row, message):
    rows = {"half": {"stage": "masks", "minutes_share": 0.5}, "one": {}, "wrong": row}
    assert ablations.main(table_arguments(tmp_path, corpus, config, rows)) == 1
    assert message in capsys.readouterr().err


def test_rows_that_are_not_equal_are_refused(tmp_path, config, corpus, calls, capsys):
    settings = table_arguments(tmp_path, corpus, config, {"one": {}})

    def fails(*more: str) -> str:
        assert ablations.main([*settings, *more]) == 1
        return capsys.readouterr().err

    assert "Unknown rows ['a4']" in fails("--rows", "a4")
    assert "--minutes must be above 0, got -5." in fails("--minutes", "-5")
    assert ablations.main(settings) == 0
    assert "was trained with another minutes" in fails("--minutes", "20")
    (row := tmp_path / "out" / "one" / "row.json").rename(tmp_path / "row.json")
    assert "one holds a training that is none of this table's" in fails()
    (tmp_path / "row.json").rename(row)
    table_arguments(tmp_path, corpus, config, {"one": {"changes": {"separator": {"ema_decay": 0.5}}}})
    assert "was trained with another config" in fails()
    table_arguments(tmp_path, corpus, config, {"one": {"changes": {"separator": {"ema": 0.5}}}})
    assert "Unknown ['ema']" in fails()
    table_arguments(tmp_path, corpus, config, {"one": {"stage": "codec"}})
    assert "'separator', 'masks' or 'peer'" in fails()
    table_arguments(tmp_path, corpus, config, {"one": {"train": ["--set", "separator.seed=1"]}})
    assert "belongs into the `changes`" in fails()


def test_a_row_that_was_stopped_has_what_is_left_of_its_minutes(tmp_path, config, corpus, calls, monkeypatch):
    monkeypatch.setattr(ablations, "last_state", lambda folder: RunState(step=3, train_seconds=90))
    assert ablations.main(table_arguments(tmp_path, corpus, config, {"one": {}})) == 0
    assert "--resume --max_train_minutes 8.5" in (tmp_path / "out" / "one" / "final" / "README.md").read_text()
