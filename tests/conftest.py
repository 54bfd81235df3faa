"""Shared fixtures. Tests use no network; those that need the shared fixtures folder skip where it is absent."""

import math
import os
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ACCELERATE_USE_CPU"] = "true"  # equal results on machines with and without accelerators

import pytest
import torch
from hypothesis import settings

from processing_mss import AudioSourceSeparationPipeline
from tests.tiny import small_corpus, tiny_codec, tiny_model, tiny_processor, tiny_training_config

# No deadline: a busy machine is no failure. CI repeats the same examples, so that it fails for changes only.
settings.register_profile("mss", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("mss")
torch.set_num_threads(1)  # tiny tensors: more threads wait for each other, above all on a busy machine

# The longest tests, so that none of them runs alone at the end; and all that fork from the server of `launching.py`,
# so that few processes of pytest-xdist start one.
FIRST = ["training", "resuming", "peer", "render", "pseudo_labels", "data", "audio_blocks"]


def pytest_collection_modifyitems(items):
    places = {f"test_{name}.py": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of fixtures and data beside the repository."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"the shared fixtures are not beside the repository ({path.name}/ is missing)")
    return path


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> str:
    """A whole repository: tiny model, processor and pipeline with their code."""
    path = tmp_path_factory.mktemp("repository")
    AudioSourceSeparationPipeline(model=tiny_model(), processor=tiny_processor()).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Songs to train on, a folder with their manifest; tests that change it make their own."""
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def codec_dir(tmp_path_factory) -> str:
    """A whole tiny codec."""
    path = tmp_path_factory.mktemp("codec")
    tiny_codec().save_pretrained(path)
    return str(path)


@pytest.fixture
def config(tmp_path) -> Path:
    """A training configuration of tiny models."""
    return tiny_training_config(tmp_path)


@pytest.fixture(scope="session")
def song_path() -> Path:
    """A real song, 44.1 kHz stereo in mp4, read from the installed stempeg package (CC BY-NC-SA: never copied)."""
    return next(Path(find_spec("stempeg").submodule_search_locations[0]).glob("data/*.stem.mp4"))


@pytest.fixture(scope="session")
def four_sounds() -> torch.Tensor:
    """Four stems of 4 s at 48 kHz, made here: a vibrato voice, noise bursts, a square bass, a chord; `(4, 192000)`."""
    time = torch.arange(4 * 48000) / 48000
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    turn = 2 * math.pi * time
    vocals = 0.2 * torch.sin(220 * turn + 3 * torch.sin(5 * turn)) * (torch.sin(0.7 * turn) > 0)
    drums = 0.3 * noise * torch.exp(-20 * (time % 0.5))
    bass = 0.2 * torch.sign(torch.sin(55 * turn)) * (0.5 + 0.5 * torch.cos(turn))
    other = 0.05 * (torch.sin(440 * turn) + torch.sin(554 * turn) + torch.sin(659 * turn)) * (time % 1)
    return torch.stack((vocals, drums, bass, other))
