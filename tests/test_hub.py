"""Repositories: self-contained, loaded by people who do not have this package, and lossless when saved again."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline

import mss_lm  # noqa: F401
from commands_mss.main import main
from modeling_mss import MssForConditionalGeneration
from modeling_mss.convert_hcodec import save_feature_extractor
from processing_mss import AudioSourceSeparationPipeline, MssProcessor
from tests.hub_server import connect, serve
from tests.tiny import masked_options, tiny_codec, tiny_model, tiny_processor
from training_mss.half_precision import halve

REPOSITORY = Path(__file__).resolve().parents[1]

# What somebody runs who has transformers but not this package; prints a checksum of the stems.
STRANGER = """
import sys
import numpy as np
from transformers import AutoModel, AutoProcessor, pipeline

model_id, save_dir = sys.argv[1:]
try:
    import modeling_mss
    sys.exit("the package is importable: this test would prove nothing")
except ImportError:
    pass
model = AutoModel.from_pretrained(model_id, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
song = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 44100)).astype(np.float32)
codes = model.generate(**processor(song, sampling_rate=44100))
pipe = pipeline("audio-source-separation", model=model_id, trust_remote_code=True)
stems = pipe(song, sampling_rate=44100)
pipe.save_pretrained(save_dir)
model.save_pretrained(save_dir + "_alone")
print([int(codes.sum()), *[float(np.abs(stem["audio"]).sum()) for stem in stems]])
"""


def run_as_stranger(script: Path, arguments: list[str], tmp_path: Path, **environment) -> list[str]:
    """Lines of what a script prints in a process that cannot see this package, from a folder of its own."""
    # An editable install of this package is a hook among the site packages; -S leaves it out.
    site_packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_ENDPOINT")},
        "PYTHONPATH": os.pathsep.join(site_packages),
        "HF_HOME": str(tmp_path / "hf_home"),
        **environment,
    }
    copied = shutil.copy(script, tmp_path)  # a script's own folder is on its path
    command = [sys.executable, "-S", copied, *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip().splitlines()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> str:
    """A whole repository of a model with masks, whose filtered output needs all of its code."""
    path = tmp_path_factory.mktemp("repository")
    model = tiny_model(**masked_options(), outputs=["filtered", "masked", "generated"])
    AudioSourceSeparationPipeline(model=model, processor=tiny_processor(model.config)).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def expected(model_dir):
    song = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 44100)).astype(np.float32)
    pipe = pipeline("audio-source-separation", model=model_dir)
    codes = pipe.model.generate(**pipe.processor(song, sampling_rate=44100))
    return [int(codes.sum()), *[float(np.abs(stem["audio"]).sum()) for stem in pipe(song, sampling_rate=44100)]]


def test_strangers_load_separate_save_and_train_without_the_package(model_dir, expected, tmp_path, monkeypatch):
    """From the Hub to a folder, and with it the example, which trains, saves and loads once more."""
    (tmp_path / "stranger.py").write_text(STRANGER)
    (tmp_path / "elsewhere").mkdir()
    saved, tuned = tmp_path / "saved", tmp_path / "tuned"
    with serve(tmp_path / "hub") as hub:
        connect(hub, monkeypatch, tmp_path)
        assert main(["push", "org/name", "--model", model_dir]) == 0
        online = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
        arguments = ["org/name", str(saved)]
        printed = run_as_stranger(tmp_path / "stranger.py", arguments, tmp_path / "elsewhere", **online)
    assert json.loads(printed[-1]) == pytest.approx(expected, rel=1e-5)
    assert sorted(os.listdir(saved)) == sorted(os.listdir(model_dir))
    alone = read_config(tmp_path / "saved_alone" / "config.json")
    assert alone["model_type"] == "mss" and "custom_pipelines" not in alone

    codec = tiny_codec()
    codec.save_pretrained(tmp_path / "codec")
    save_feature_extractor(codec.config, tmp_path / "codec")
    arguments = ["--model", str(saved), "--codec", str(tmp_path / "codec"), "--output_dir", str(tuned)]
    printed = run_as_stranger(REPOSITORY / "examples" / "transformers_api.py", arguments, tmp_path)
    separated, losses, loaded = [line for line in printed if not line.startswith("{")]
    assert separated == "3 windows, codes (3, 4, 100, 4), stems (4, 384000) at 48000 Hz"
    before, after = map(float, re.findall(r"\d+\.\d+", losses))
    assert after < before and loaded.endswith("the same codes")
    assert set(os.listdir(model_dir)) <= set(os.listdir(tuned))


def test_with_the_package_no_flag_is_needed(model_dir):
    pipe = pipeline("audio-source-separation", model=model_dir)
    assert type(pipe) is AudioSourceSeparationPipeline
    assert type(pipe.model) is MssForConditionalGeneration and type(pipe.processor) is MssProcessor
    assert type(AutoModel.from_pretrained(model_dir)) is MssForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(model_dir)) is MssProcessor
    assert type(AutoFeatureExtractor.from_pretrained(model_dir)).__name__ == "MssFeatureExtractor"


def test_weights_of_half_the_size_are_computed_with_in_float32(model_dir, tmp_path):
    size = halve(model_dir, tmp_path / "half")
    assert size < 0.6 * (Path(model_dir) / "model.safetensors").stat().st_size
    half, whole = (MssForConditionalGeneration.from_pretrained(path) for path in (tmp_path / "half", model_dir))
    assert half.dtype == torch.float32
    for name, weight in whole.state_dict().items():
        rounded = weight.half().float() if weight.is_floating_point() else weight
        torch.testing.assert_close(half.state_dict()[name], rounded, atol=0, rtol=0)
    pipe = pipeline("audio-source-separation", model=str(tmp_path / "half"))
    assert pipe.model.dtype == torch.float32 and type(pipe.processor) is MssProcessor


def read_config(path: Path) -> dict:
    """A saved configuration without the dtype of its parts, which transformers fills in when weights are loaded."""
    config = json.loads(path.read_text())
    for part in config.values():
        if isinstance(part, dict):
            part.pop("dtype", None)
    return config


@pytest.mark.parametrize("from_pipeline", [True, False])
def test_saving_again_loses_nothing(model_dir, tmp_path, from_pipeline):
    if from_pipeline:
        pipeline("audio-source-separation", model=model_dir).save_pretrained(tmp_path)
        assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(model_dir))
        for name in ("config.json", "processor_config.json", "generation_config.json"):
            assert read_config(tmp_path / name) == read_config(Path(model_dir) / name)
    else:
        AutoModel.from_pretrained(model_dir).save_pretrained(tmp_path)  # the model alone names no pipeline
        assert "custom_pipelines" not in read_config(tmp_path / "config.json")
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (model_dir, tmp_path))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert any(key.startswith("codec.decoder.") for key in before)
    assert not any(key.startswith(("codec.encoder.", "codec.semantic_model.")) for key in before)
