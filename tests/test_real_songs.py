"""Real songs without references: `benchmarks.real_songs`."""

import json
import sys

import pytest
import torch

from benchmarks import real_songs
from data_mss.manifest import STEMS
from evaluation_mss.metric_inputs import MetricUnavailable
from processing_mss import AudioSourceSeparationPipeline, write_audio
from tests.tiny import masked_options, tiny_model, tiny_processor


def test_agreement_divides_the_power_of_the_song():
    song = torch.tensor([4.0, 3.0, 2.0, 1.0])  # the shares of vocals agree, differ, differ, agree
    ours, theirs = torch.tensor([1.0, 0.75, 0.0, 0.0]), torch.tensor([1.0, 0.25, 1.0, 0.0])
    found = real_songs.agreement(song, ours, theirs)
    assert found == pytest.approx(
        {
            "agreement": 1 - (3 * 0.5 + 2) / 10,
            "agreement_of_no_vocals": 1 - (4 + 3 * 0.25 + 2) / 10,
            "both_vocals": (4 + 3 * 0.25) / 10,
            "both_rest": (3 * 0.25 + 1) / 10,
            "ours_only": 3 * 0.5 / 10,
            "spleeter_only": 2 / 10,
            "overlap": (4 + 3 * 0.25) / (4 + 3 * 0.75 + 2),
        }
    )
    assert real_songs.agreement(song, 0 * ours, 0 * theirs)["overlap"] is None
    missed = real_songs.divide(torch.tensor([2.0, 6.0]), {"bass": torch.tensor([1, 0]), "other": torch.tensor([3, 1])})
    assert missed == {"bass": 0.5 / 8, "other": 7.5 / 8}


class Half:
    """In Spleeter's place: the vocals are half of the song, or nothing."""

    name, identity = "spleeter", "half"

    def separate(self, song):
        return {"vocals": song.mixture * (0.5 if song.name != "silent" else 0)}


def test_songs_are_compared_and_heard_ones_stand_apart(tmp_path, four_sounds, monkeypatch, capsys):
    model_dir = tmp_path / "model"
    pipe = AudioSourceSeparationPipeline(model=tiny_model(**masked_options()), processor=tiny_processor())
    pipe.save_pretrained(model_dir)
    for name in ("sung", "silent", "heard"):
        write_audio(tmp_path / "songs" / f"{name}.wav", four_sounds.sum(dim=0, keepdim=True).numpy(), 48000)
    monkeypatch.setattr(real_songs, "load_baseline", lambda name: Half())
    power = {"power": lambda sound, rate: {"power": sound.square().mean().item()}}
    pictures = {}
    monkeypatch.setattr(real_songs, "spectrogram_sheet", lambda *sheet: pictures.update({sheet[3].name: sheet}))
    monkeypatch.setattr(real_songs, "METRICS", power | {"nisqa": no_weights})
    arguments = ["--model", model_dir, "--output_dir", tmp_path / "scores", "--pictures", tmp_path / "pictures"]
    arguments += [tmp_path / "songs", "--heard", tmp_path / "songs" / "heard.wav"]
    monkeypatch.setattr(sys, "argv", ["real_songs", *map(str, arguments)])
    assert real_songs.main() == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    silent, sung = result["songs"]
    assert (silent["song"], sung["song"], result["heard"][0]["song"]) == ("silent", "sung", "heard")
    assert sung["shares"]["agreement_of_no_vocals"] == pytest.approx(0.5, abs=1e-4)
    assert silent["shares"]["agreement"] == pytest.approx(silent["shares"]["both_rest"], abs=1e-4)
    assert sum(sung["shares"][f"spleeter_only_in_{stem}"] for stem in STEMS[1:]) == pytest.approx(1, abs=1e-3)
    assert sung["levels"]["vocals_db, spleeter"] == pytest.approx(-6.02, abs=0.01)
    assert sung["segments"][0]["spleeter"] == sung["levels"]["vocals_db, spleeter"]
    assert silent["levels"]["vocals_there_db, mss-lm"] == pytest.approx(sung["levels"]["vocals_db, mss-lm"], abs=0.01)
    heard = sung["listening"]
    assert heard["power, spleeter"] == pytest.approx(heard["power, mixture"] / 4)
    assert silent["listening"] == {"segments_with_vocals": 0, "scored": 0} and result["missing"] == {
        "nisqa": "no weights"
    }
    text = (tmp_path / "scores" / "real_songs.md").read_text()
    assert text.count("| heard (heard in training) |") == text.count("| **mean** |") == 3
    assert pictures["sung.png"][1] == ["voice, from 0 s"] and pictures["silent.png"][1] == [
        "none by spleeter, from 0 s"
    ]
    rows = {name: row["voice, from 0 s"] for name, row in pictures["sung.png"][0].items()}
    assert torch.allclose(rows["vocals, mss-lm"] + rows["no vocals, mss-lm"], rows["mixture"], atol=1e-6)
    assert torch.equal(rows["vocals, spleeter"], rows["mixture"] / 2) and "other, mss-lm" in rows

    (tmp_path / "songs" / "sung.wav").write_bytes(b"no audio")  # costs no other song
    assert real_songs.main() == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [song["song"] for song in result["songs"]] == ["silent"] and list(result["errors"]) == ["sung"]
    write_audio(tmp_path / "more" / "silent.wav", four_sounds.sum(dim=0, keepdim=True).numpy(), 48000)
    monkeypatch.setattr(sys, "argv", [*sys.argv, str(tmp_path / "more")])
    with pytest.raises(SystemExit):
        real_songs.main()
    assert "Two songs are called 'silent'" in capsys.readouterr().err


def no_weights(waveform, sampling_rate):
    raise MetricUnavailable("no weights")
