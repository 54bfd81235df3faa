"""Separators and Spaces on their way to the Hub and back, by a Hub on the loopback interface."""

import ast
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard, constants, metadata_load
from transformers import AutoModel, pipeline
from transformers.utils import cached_file

from commands_mss.main import main
from processing_mss import AudioSourceSeparationPipeline
from tests.hub_server import TOKEN, connect, files_of, serve
from tests.tiny import tiny_model, tiny_processor
from training_mss.half_precision import halve

ROOT = Path(__file__).resolve().parents[1]
CARD = "---\nlicense: cc0-1.0\n---\n\n# My separator\n"
MADE_THERE = ".gitattributes"  # by the Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve(tmp_path / "hub") as hub:
        connect(hub, monkeypatch, tmp_path)
        yield hub


@pytest.fixture
def separate(tmp_path) -> list[str]:
    """A command that separates half a second with the model "org/name"."""
    song = tmp_path / "song.wav"
    soundfile.write(song, np.random.default_rng(0).uniform(-0.5, 0.5, (22050, 2)), 44100)
    options = ["--output", "generated", "--stems", "vocals", "--num_codebooks", "1", "--overwrite"]
    return ["separate", str(song), "--model", "org/name", *options, "--output_dir", str(tmp_path / "out")]


def test_a_separator_is_pushed_whole_and_every_revision_can_be_had(hub, model_dir, tmp_path, capsys):
    assert main(["push", "org/name", "--model", model_dir, "--private"]) == 0
    assert f"{hub.address}/org/name" in capsys.readouterr().out
    assert hub.created["models/org/name"]["visibility"] == "private"
    _, first = hub.commits["models/org/name"]  # made empty, filled in one commit
    folder = hub.snapshot("models/org/name")
    assert set(files_of(folder)) == {MADE_THERE, "README.md", "SHA256SUMS", *os.listdir(model_dir)}
    sums = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in sums} == set(os.listdir(model_dir))
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for digest, name in sums)
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "audio-to-audio" and card.data.license is None
    assert "vocals, drums, bass, other" in card.text and "**unknown**" in card.text and '"org/name"' in card.text

    whole, other = tmp_path / "whole", tmp_path / "other"
    AudioSourceSeparationPipeline(model=tiny_model(seed=1), processor=tiny_processor()).save_pretrained(whole)
    halve(whole, other)
    (other / "README.md").write_text(CARD)
    assert main(["push", "org/name", "--model", str(other)]) == 0
    second = hub.commits["models/org/name"][-1]
    stored = hub.snapshot("models/org/name") / "model.safetensors"
    assert stored.read_bytes() == (other / "model.safetensors").read_bytes()  # of half the size, as they were
    assert main(["push", "org/name", "--model", model_dir]) == 0  # has no card: the one that is there is better
    assert (hub.snapshot("models/org/name") / "README.md").read_text() == CARD
    for revision, source in ((first, model_dir), (second, other), ("main", model_dir)):
        loaded = AutoModel.from_pretrained("org/name", revision=revision)
        for name, weight in AutoModel.from_pretrained(source).state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], weight, atol=0, rtol=0)


def test_saving_to_the_hub_saves_all_of_the_pipeline(hub, model_dir, tmp_path):
    pipe = pipeline("audio-source-separation", model=model_dir)
    pipe.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="org/name", commit_message="Mine")
    pushed = set(files_of(hub.snapshot("models/org/name")))
    assert pushed == {MADE_THERE, "README.md", *os.listdir(model_dir)}
    assert set(os.listdir(tmp_path / "saved")) == set(os.listdir(model_dir))


def test_downloads_are_resumed_kept_and_used_offline(hub, model_dir, separate, tmp_path, monkeypatch):
    assert main(["push", "org/name", "--model", model_dir]) == 0
    hub.requests.clear()
    hub.cut["model.safetensors"] = [60000]
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20000)  # 10 MB, less of which is not kept
    assert main(separate) == 0
    weights = [file for file in hub.downloads() if file.startswith("model.safetensors")]
    assert weights == ["model.safetensors", "model.safetensors bytes=60000-"]
    assert len(set(hub.downloads())) == len(hub.downloads()) >= 6  # each once, whoever needs it
    stem = (tmp_path / "out" / "song" / "vocals.wav").read_bytes()

    hub.requests.clear()
    assert main(separate) == 0
    assert hub.downloads() == []

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    environment["HF_HUB_CACHE"] = constants.HF_HUB_CACHE
    command = [sys.executable, "-m", "commands_mss.main", *separate]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "song" / "vocals.wav").read_bytes() == stem


def test_damaged_downloads_are_refused(hub, model_dir, separate, tmp_path, capsys, monkeypatch):
    def refused() -> str:
        capsys.readouterr()
        assert main(separate) == 1
        assert not (tmp_path / "out").exists()
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("mss-lm separate: error: ") and "org/name" in line
        return line

    assert main(["push", "org/name", "--model", model_dir]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # between its tries
        hub.cut["model.safetensors"] = [0] * 100
        assert "org/name cannot be downloaded" in refused()
    hub.cut.clear()
    hub.shorten["model.safetensors"] = 50000
    assert re.search(r"should be of size \d+ but has size 50000 .*safetensors", refused())
    hub.shorten.clear()

    assert main(separate) == 0
    shutil.rmtree(tmp_path / "out")
    kept = Path(cached_file("org/name", "model.safetensors")).resolve()
    changed = bytearray(kept.read_bytes())
    changed[-1] ^= 1
    kept.write_bytes(changed)
    line = refused()
    assert "model.safetensors of org/name is damaged" in line
    assert f"delete {kept}, and the next call downloads it again" in line
    kept.unlink()
    assert main(separate) == 0

    # Other weights, a file that was edited on the Hub, and checksums that are older than both.
    AudioSourceSeparationPipeline(model=tiny_model(seed=1), processor=tiny_processor()).push_to_hub("org/name")
    edited = hub.snapshot("models/org/name") / "generation_config.json"
    content = base64.b64encode(edited.read_bytes() + b"\n").decode()
    hub.commit("models/org/name", [{"key": "file", "value": {"path": edited.name, "content": content}}])
    assert main(separate) == 0


def test_a_damaged_folder_is_refused_unless_it_is_ones_own(model_dir, separate, tmp_path, capsys):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    digest = hashlib.sha256((folder / "generation_config.json").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  generation_config.json\n{digest}  codec/model.safetensors\n")
    separate[separate.index("org/name")] = str(folder)
    assert main(separate) == 0
    with open(folder / "generation_config.json", "a") as file:
        file.write("\n")
    assert main(separate) == 1
    remedy = f"get it again, or delete {folder / 'SHA256SUMS'} if you have changed it yourself"
    assert remedy in capsys.readouterr().err
    (folder / "generation_config.json").unlink()
    assert main(separate) == 1
    assert "There is no generation_config.json in" in capsys.readouterr().err
    (folder / "SHA256SUMS").unlink()
    assert main(separate) == 0


def test_a_space_is_pushed_with_its_code_and_model(hub, model_dir):
    """tests/test_space.py runs it."""
    assert main(["push", "org/name", "--model", model_dir]) == 0
    assert main(["push", "--space", "org/demo", "--model", "org/name"]) == 0
    assert hub.created["spaces/org/demo"]["sdk"] == "gradio"
    folder = hub.snapshot("spaces/org/demo")
    own = {path.relative_to(ROOT / "space") for path in (ROOT / "space").rglob("*") if "__pycache__" not in path.parts}
    assert all((folder / path).exists() for path in own)
    assert not [file for file in files_of(folder) if "__pycache__" in file or "codec/" in file]
    header = metadata_load(folder / "README.md")
    assert header.pop("models") == ["org/name"] and header == metadata_load(ROOT / "space" / "README.md")


def test_the_requirements_of_a_space_are_those_of_its_code():
    lines = {line for line in (ROOT / "space" / "requirements.txt").read_text().splitlines() if line[0] != "#"}
    setup = (ROOT / "setup.py").read_text()
    assert all(f'"{line}"' in setup for line in lines)
    required = {re.match(r"[\w-]+", line).group() for line in lines}
    files = [path for folder in ("space", "modeling_mss", "processing_mss") for path in (ROOT / folder).glob("*.py")]
    beside = {path.stem for path in files} | {"modeling_mss", "processing_mss", "mss_lm", "torchaudio_guard_mss"}
    for path in files:
        tree = ast.parse(path.read_text())
        in_try = {child for node in ast.walk(tree) if isinstance(node, ast.Try) for child in ast.walk(node)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - beside:
                if top != "spaces" and node not in in_try:
                    assert {"yaml": "pyyaml"}.get(top, top) in required, f"{path.name} imports {top}"


@pytest.mark.parametrize("arguments", [["org/name"], ["--space", "org/name"]])
def test_a_dry_run_lists_what_would_be_uploaded_and_asks_nobody(hub, model_dir, capsys, monkeypatch, arguments):
    arguments = ["push", *arguments, "--model", model_dir]
    monkeypatch.delenv("HF_TOKEN")  # no login is needed
    assert main([*arguments, "--dry_run"]) == 0
    assert hub.requests == []
    *lines, last = capsys.readouterr().out.splitlines()
    listed = {name: int(size.replace(",", "")) for size, name in (line.split(maxsplit=1) for line in lines)}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(arguments) == 0
    assert main([*arguments, "--private"]) == 1  # all can see it
    assert "is there already and public" in capsys.readouterr().err
    assert [len(commits) for commits in hub.commits.values()] == [2]
    folder = hub.snapshot("spaces/org/name" if "--space" in arguments else "models/org/name")
    pushed = {file: (folder / file).stat().st_size for file in files_of(folder) if file != MADE_THERE}
    assert listed == pushed
    assert not any(model_dir.encode() in (folder / file).read_bytes() for file in pushed)  # where it lay is our affair
    assert last.split() == [f"{sum(pushed.values()):,}", *f"bytes in {len(pushed)} files would be uploaded".split()]


@pytest.mark.parametrize(
    "arguments, setting, message",
    [
        (["name"], {}, "named ORG/NAME.*got 'name': whose it is must stand before"),
        (["org/na me"], {}, "named ORG/NAME.*got 'org/na me'"),
        (["org/name"], {"HF_TOKEN": ""}, "not logged in.*hf auth login"),
        (["org/name"], {"HF_TOKEN": "hf_old"}, "does not know the token"),
        (["others/name"], {}, "may not write to others/name.*a name of your own"),
        (["org/name"], {"HF_HUB_OFFLINE": True}, "HF_HUB_OFFLINE is set"),
        (["org/name"], {"ENDPOINT": "http://127.0.0.1:9"}, "127.0.0.1:9.* cannot be reached"),
        (["org/name", "--model", "nobody/nothing"], {}, "nobody/nothing is not a local folder"),
        (["org/name", "--model", "runs/none/final"], {}, "There is no folder runs/none/final"),
    ],
)
def test_what_cannot_be_pushed_is_said_in_a_sentence(hub, model_dir, monkeypatch, capsys, arguments, setting, message):
    for name, value in setting.items():
        if name == "HF_TOKEN":
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.setattr(constants, name, value)
    assert main(["push", "--model", model_dir, *arguments]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("mss-lm push: error: ") and re.search(message, line)
    assert not any(hub.commits.values())
