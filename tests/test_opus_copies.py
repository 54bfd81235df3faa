"""Songs as small Opus files, which travel."""

import numpy as np
import pytest
import soundfile

from data_mss.audio_files import read_mono
from data_mss.manifest import ManifestWriter, Song, read_manifest
from data_mss.opus_copies import main

RATE = 44100
SECONDS = 6.0


@pytest.fixture
def songs(tmp_path):
    """A song of stereo stems in two files and in one, and the accompaniment of another as a sum of stems."""
    rng = np.random.default_rng(0)
    time = np.arange(int(SECONDS * RATE)) / RATE
    rising = 0.3 * np.sin(2 * np.pi * (200 + 100 * time) * time)  # every moment differs from all others
    for name, waveform in {"rising": rising, "noise": 0.05 * rng.standard_normal(len(time))}.items():
        soundfile.write(tmp_path / f"{name}.wav", np.stack([waveform, waveform], axis=1), RATE)
    writer = ManifestWriter(tmp_path / "manifest.jsonl")
    rising, noise = str(tmp_path / "rising.wav"), str(tmp_path / "noise.wav")
    writer.add(Song("one", "train", {"vocals": [rising], "other": [noise, noise]}, SECONDS, RATE, "a", "CC0-1.0"))
    writer.add(Song("two", "validation", {"drums+bass+other": [noise]}, SECONDS, RATE, "b", confidence=0.5))
    return tmp_path


def test_copies_are_the_songs_middle_in_a_fraction_of_the_bytes(songs, tmp_path, capsys):
    copies = tmp_path / "copies"
    assert main([str(songs), "--output_dir", str(copies), "--max_seconds", "4", "--kbps", "32"]) == 0
    one, two = read_manifest(copies)
    assert (one.id, one.split, one.source, one.licence, one.duration) == ("one", "train", "a", "CC0-1.0", 4.0)
    assert list(two.stems) == ["drums+bass+other"] and two.confidence == 0.5
    assert one.paths("vocals") == [copies / "train" / "one" / "vocals.opus"]
    copy = read_mono(one.paths("vocals")[0], 48000)
    middle = read_mono(songs / "rising.wav", 48000)[48000 : 5 * 48000]
    assert len(copy) == 4 * 48000
    assert np.corrcoef(copy, middle)[0, 1] > 0.95
    assert one.paths("vocals")[0].stat().st_size < 4 * 48000 / 8
    assert main([str(songs), "--output_dir", str(copies), "--max_seconds", "4"]) == 0  # what is there stays
    assert len(read_manifest(copies)) == 2
    assert main([str(songs), "--output_dir", str(copies)]) == 1
    assert "has 'one', made with {'max_seconds': 4.0}, not with {'max_seconds': None}" in capsys.readouterr().err


def test_a_rate_that_opus_lacks_and_two_songs_of_one_id_are_errors(songs, tmp_path, capsys):
    assert main([str(songs), "--output_dir", str(tmp_path / "copies"), "--kbps", "600"]) == 1
    assert "6 to 256" in capsys.readouterr().err
    assert main([str(songs), str(songs), "--output_dir", str(tmp_path / "copies")]) == 1
    assert "several songs of the ids ['one', 'two']" in capsys.readouterr().err
