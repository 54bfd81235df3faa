"""SCNet as a baseline: from a stand-in for a clone, as each of both repositories has it."""

import dataclasses
from pathlib import Path

import pytest
import torch

from evaluation_mss.baselines import load_baseline
from tests.test_systems import STEMS, made_song

# What matters of the interface of both repositories that have SCNet: where the class is and what it imports, its
# arguments, `sources` and `audio_channels`, (B, C, T) -> (B, S, C, T), and that T is not what a STFT would want.
SCNET = """
import torch
from .separation import Gain


class SCNet(torch.nn.Module):
    def __init__(self, sources=["drums", "bass", "other", "vocals"], audio_channels=2, dims=[4, 32], nfft=4096):
        super().__init__()
        self.sources, self.audio_channels, self.lengths = sources, audio_channels, []
        self.separation_net = Gain(len(sources))

    def forward(self, x):
        self.lengths.append(x.shape[-1])
        return self.separation_net(x)
"""
SEPARATION = """
import torch


class Gain(torch.nn.Module):
    def __init__(self, num_sources):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(num_sources))

    def forward(self, x):
        return self.gain[:, None, None] * x[:, None]
"""
AUTHORS_YAML = "data: {samplerate: 8000, segment: 11}\nmodel: {sources: [drums, bass, other, vocals], dims: [4, 8]}\n"
MSST_YAML = """
audio: {chunk_size: 8000, num_channels: 2, sample_rate: 8000}
model: {sources: [drums, bass, other, vocals], dims: [4, 8]}
augmentations: {mixup_probs: !!python/tuple [0.2, 0.02]}
inference: {batch_size: 2, num_overlap: 4, normalize: false}
"""


def scnet_clone(folder: Path, msst: bool = False) -> dict[str, str]:
    """A clone with a stand-in for the network, and a checkpoint as each repository writes it."""
    code, config = ("models/scnet/scnet.py", "configs/c.yaml") if msst else ("scnet/SCNet.py", "conf/config.yaml")
    for name, text in (
        (code, SCNET),
        (f"{Path(code).parent}/separation.py", SEPARATION),
        (f"{Path(code).parent}/__init__.py", "raise ImportError('all that training needs')"),
        (config, MSST_YAML if msst else AUTHORS_YAML),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    gain = {"separation_net.gain": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    best = {f"module.{name}": weight for name, weight in gain.items()}
    last = {name: 0 * weight for name, weight in gain.items()}
    authors = {"state": last, "best_state": best, "best_nsdr": 9.0, "epoch": 3, "optimizer": {"param_groups": []}}
    torch.save({"state_dict": gain} if msst else authors, folder / "checkpoint.th")
    return {"checkpoint": str(folder / "checkpoint.th"), "config": str(folder / config)}


@pytest.mark.parametrize("msst", [False, True])
def test_scnet_from_a_clone(tmp_path, msst):
    files = scnet_clone(tmp_path, msst)
    system = load_baseline("scnet", **files, device="cpu")
    assert system.name == "scnet"
    song = made_song(2.5)
    # The authors scale songs to zero mean and unit deviation; the mean comes back in every stem.
    offset = dataclasses.replace(song, mixture=song.mixture + 0.05)
    mean = 0.0 if msst else offset.mixture.mean()
    estimates = system.separate(offset)
    assert list(estimates) == STEMS
    for estimate, gain in zip(estimates.values(), (0.4, 0.1, 0.2, 0.3)):
        torch.testing.assert_close(estimate, gain * (offset.mixture - mean) + mean)
    lengths = system._teacher.model.lengths
    assert lengths == ([8000] * 4 if msst else [20000])  # 7 chunks of 1 s in twos, or a song shorter than 20 s
    if not msst:
        system.separate(made_song(25.0))
        assert lengths[1:] == [160000, 160000]  # 20 s, from 0 and from 10 s on
    assert {tuple(stem.shape) for stem in system.separate(made_song(1.0, 6000, channels=1)).values()} == {(1, 6000)}


def test_scnet_says_what_is_wrong_with_its_files(tmp_path):
    files = scnet_clone(tmp_path / "clone")
    identity = load_baseline("scnet", **files, device="cpu").identity
    (tmp_path / "lone.yaml").write_text(AUTHORS_YAML)
    lone = {**files, "config": str(tmp_path / "lone.yaml")}
    with pytest.raises(ValueError, match="No code of SCNet"):
        load_baseline("scnet", **lone, device="cpu")
    load_baseline("scnet", **lone, code=str(tmp_path / "clone"), device="cpu")
    load_baseline("scnet", **lone, code=str(tmp_path / "clone" / "scnet" / "SCNet.py"), device="cpu")
    with pytest.raises(ValueError, match="no class `SCNet`"):
        load_baseline("scnet", **lone, code=str(tmp_path / "clone" / "scnet" / "separation.py"), device="cpu")
    for text, message in (
        ("model: {bandsplit_ratios: [0.5, 0.5]}", "does not fit the code.*bandsplit_ratios"),
        ("model: {sources: [vocals, other]}", "does not fit its YAML"),
        ("audio: {chunk_size: 1}", "section `model`"),
        ("audio: {sample_rate: 1}\nmodel: {dims: [4]}", "chunk_size"),
        ("model: !!python/object/apply:os.getcwd []", "safely"),
    ):
        Path(files["config"]).write_text(text)
        with pytest.raises(ValueError, match=message):
            load_baseline("scnet", **files, device="cpu")
    files = scnet_clone(tmp_path / "clone")
    torch.save({"best_state": {"separation_net.gain": torch.ones(4)}}, files["checkpoint"])
    assert load_baseline("scnet", **files, device="cpu").identity != identity
    torch.save([torch.ones(4)], files["checkpoint"])
    with pytest.raises(ValueError, match="holds a list"):
        load_baseline("scnet", **files, device="cpu")
    Path(files["checkpoint"]).write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="as weights alone"):
        load_baseline("scnet", **files, device="cpu")
