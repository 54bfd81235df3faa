"""`mss-lm evaluate` with the real parts, from manifest to tables."""

import argparse
import dataclasses
import json

import numpy as np
import pytest

from commands_mss import evaluate as command
from commands_mss.main import main
from data_mss.manifest import read_manifest
from evaluation_mss.baselines import BASELINES
from evaluation_mss.bounds import BOUNDS
from evaluation_mss.metric_inputs import MetricUnavailable
from evaluation_mss.metric_table import METRICS
from evaluation_mss.results import read_records
from processing_mss import AudioSourceSeparationPipeline, write_audio
from tests.tiny import masked_options, small_corpus, tiny_model, tiny_processor


def test_what_the_command_offers():
    assert command.METRICS == list(METRICS)
    assert command.BASELINES == list(BASELINES) and command.BOUNDS == list(BOUNDS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"), songs=2, seconds=2.0)


def evaluate_corpus(corpus, output_dir, *arguments: str) -> int:
    songs = ["--manifests", str(corpus), "--split", "train", "--output_dir", str(output_dir)]
    return main(["evaluate", *songs, "--metrics", "usdr", "si_sdr", "csdr", "mel_distance", *arguments])


def test_the_command_from_manifest_to_tables(corpus, tmp_path, model_dir, capsys):
    songs = [song for song in read_manifest(corpus) if song.split == "train"]
    for song in songs:  # what another program made: only vocals, mono, at another rate
        quarter = np.load(song.paths("vocals")[0])[None, ::2].astype(np.float32) / 32768
        write_audio(tmp_path / "theirs" / song.id / "Lead Vocals.wav", quarter, 24000)
    folder = tmp_path / "lr=1"  # no NAME=PATH
    folder.symlink_to(model_dir)
    arguments = ["--model", str(folder), "--bounds", "mixture", "ideal_ratio_mask", "--outputs", "filtered"]
    arguments += ["--stems_dir", f"theirs={tmp_path / 'theirs'}", "--device", "cpu", "--window_s", "0.96"]
    out = tmp_path / "scores"
    assert evaluate_corpus(corpus, out, *arguments) == 0
    assert "8 separations scored, 0 already there, 0 failed" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["systems"]) == ["mixture", "ideal_ratio_mask", "theirs", "mss-lm filtered"]
    usdr = {name: entry["scores"]["usdr"] for name, entry in summary["systems"].items()}
    assert usdr["mixture"]["mean"]["mean"] < usdr["mss-lm filtered"]["mean"]["mean"]
    assert usdr["ideal_ratio_mask"]["mean"]["mean"] > usdr["mss-lm filtered"]["mean"]["mean"] + 3
    assert set(usdr["theirs"]) == {"vocals"} and usdr["theirs"]["vocals"]["mean"] > 10
    assert usdr["mixture"]["vocals"]["low"] <= usdr["mixture"]["vocals"]["mean"] <= usdr["mixture"]["vocals"]["high"]
    text = (out / "tables.md").read_text()
    assert "| mss-lm filtered | csdr (dB) |" in text and "usdr: mss-lm" in text and "seed 0" in text
    assert summary["systems"]["mss-lm filtered"]["identity"] in text

    assert evaluate_corpus(corpus, out, *arguments) == 0
    assert "0 separations scored, 8 already there" in capsys.readouterr().out
    assert (out / "tables.md").read_text() == text

    for shard in ("0", "1"):
        sharded = ["--bounds", "mixture", "--shard_index", shard, "--num_shards", "2"]
        assert evaluate_corpus(corpus, tmp_path / "sharded", *sharded) == 0
    both = json.loads((tmp_path / "sharded" / "summary.json").read_text())
    assert both["systems"]["mixture"]["scores"] == summary["systems"]["mixture"]["scores"]


def test_another_decoding_is_another_call(corpus, tmp_path, model_dir, capsys):
    """Several models make differences from the first; what a later call scores differs by its options and names."""
    folder = tmp_path / "a model, lr=1"
    folder.symlink_to(model_dir)
    common = ["--device", "cpu", "--window_s", "0.96", "--max_songs", "1", "--bounds", "mixture"]
    models = ["--model", f"main={folder}", f"same={folder}"]
    assert evaluate_corpus(corpus, tmp_path / "scores", *models, *common) == 0
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    names = ["mixture", "main filtered", "main generated", "same filtered", "same generated"]
    assert list(summary["systems"]) == names and summary["ablations"] == names[1:]
    systems = summary["systems"]
    references = {name: entry["reference"] for name, entry in systems.items() if "reference" in entry}
    filtered = dict.fromkeys(["mixture", "same filtered"], "main filtered")
    assert references == filtered | {"same generated": "main generated"}
    assert systems["same filtered"]["differences"]["usdr"]["mean"]["mean"] == pytest.approx(0)
    usdr = {name: systems[name]["scores"]["usdr"]["mean"]["mean"] for name in ("mixture", "main filtered")}
    difference = systems["mixture"]["differences"]["usdr"]["mean"]["mean"]
    assert difference == pytest.approx(usdr["mixture"] - usdr["main filtered"])
    assert "## Table 3 (ablations): differences" in (tmp_path / "scores" / "tables.md").read_text()

    capsys.readouterr()
    models = ["--model", f"deep={folder}", "--outputs", "filtered", "--no-expected"]
    assert evaluate_corpus(corpus, tmp_path / "scores", *models, *common) == 0
    assert "1 separation scored, 1 already there" in capsys.readouterr().out  # the mixture
    deep = json.loads((tmp_path / "scores" / "summary.json").read_text())["systems"]["deep filtered"]
    assert "expected=False" in deep["identity"]
    assert deep["scores"]["usdr"]["mean"]["mean"] != usdr["main filtered"]


def test_the_commands_excerpts_and_report(corpus, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    arguments = ["--bounds", "ideal_ratio_mask", "--excerpt_s", "0.5", "--starts_s", "0.2", "1.2", "--max_songs", "1"]
    assert evaluate_corpus(corpus, tmp_path, *arguments, "--report", "--report_excerpts", "1") == 0
    assert {line["excerpt"] for line in read_records(tmp_path)} == {"song0@0.2s", "song0@1.2s"}
    assert {line["duration_s"] for line in read_records(tmp_path)} == {0.5}
    assert "ideal_ratio_mask/song0%400.2s/vocals.flac" in (tmp_path / "report.html").read_text()
    assert "report.html" in capsys.readouterr().out and (tmp_path / "pictures" / "song0@0.2s.png").is_file()
    assert "excerpts of 0.5 s" in (tmp_path / "tables.md").read_text()


def test_each_output_gets_the_options_that_it_has(tmp_path, model_dir):
    model = tiny_model(**masked_options())
    AudioSourceSeparationPipeline(model=model, processor=tiny_processor(model.config)).save_pretrained(tmp_path)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = ["--manifests", "songs", "--output_dir", "scores", "--device", "cpu", "--model", str(tmp_path)]
    asked = {"num_candidates": 1, "expected": True, "seed": 0, "overlap": 0.2}
    given += ["--num_candidates", "1", "--expected", "--overlap", "0.2"]
    masked, filtered, generated = command.load_models(parser.parse_args(given))
    for system, output, has in (
        (masked, "masked", {"overlap"}),
        (filtered, "filtered", asked.keys()),
        (generated, "generated", asked.keys() - {"expected", "num_candidates"}),
    ):
        assert system.name == f"mss-lm {output}" and system.options.output == output
        expected = {name: asked[name] if name in has else None for name in asked}
        assert {name: getattr(system.options, name) for name in asked} == expected
    with pytest.raises(ValueError, match="Nothing here uses --num_candidates --expected: leave"):
        command.load_models(parser.parse_args([*given, "--outputs", "masked"]))

    models = ["--model", f"masks={tmp_path}", f"tokens={model_dir}", "--outputs"]  # the second has no masks
    systems = command.load_models(parser.parse_args([*given, *models, "masked", "filtered"]))
    assert [system.name for system in systems] == ["masks masked", "masks filtered", "tokens filtered"]
    with pytest.raises(ValueError, match=r"tokens has \['filtered', 'generated'\] only"):
        command.load_models(parser.parse_args([*given, *models, "masked"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model, --baseline, --stems_dir or --bounds"),
        (["--bounds", "mixture", "--codec_roundtrip"], "needs --codec"),
        (["--bounds", "mixture", "--codec", "codec"], "Nothing here uses --codec"),
        (["--bounds", "mixture", "--window_s", "2"], "Nothing here uses --window_s"),
        (["--bounds", "codec"], "needs a whole codec"),
        (["--stems_dir", "folder"], "NAME=FOLDER"),
        (["--baseline", "unmix"], "must be one of"),
        (["--bounds", "mixture", "--starts_s", "3"], "excerpt_s"),
        (["--bounds", "mixture", "mixture"], "names of their own"),
        (["--model", " "], "takes [NAME=]PATH"),
        (["--model", "a=no such folder"], "no such folder"),
    ],
)
def test_what_the_command_refuses(corpus, tmp_path, capsys, arguments, message):
    assert evaluate_corpus(corpus, tmp_path / "scores", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("mss-lm evaluate: error: ") and message in error
    assert not (tmp_path / "scores").exists()


def test_the_command_says_that_a_song_failed(corpus, tmp_path, capsys):
    write_audio(tmp_path / "theirs" / "song0" / "vocals.wav", np.zeros((1, 2 * 48000), np.float32), 48000)
    arguments = ["--stems_dir", f"theirs={tmp_path / 'theirs'}", "--metrics", "mel_distance"]
    assert evaluate_corpus(corpus, tmp_path / "scores", *arguments) == 1
    captured = capsys.readouterr()
    assert "1 separation scored, 0 already there, 1 failed" in captured.out and "theirs on song1" in captured.out


def test_a_metric_that_was_asked_for_and_cannot_run_is_a_failure(corpus, tmp_path, capsys, monkeypatch):
    def compute(sounds):
        raise MetricUnavailable("put the weights there")

    monkeypatch.setitem(METRICS, "usdr", dataclasses.replace(METRICS["usdr"], compute=compute))
    for kept in (0, 2):  # also when all that can be scored is there already
        assert evaluate_corpus(corpus, tmp_path / "scores", "--bounds", "mixture", "--metrics", "usdr") == 1
        told = capsys.readouterr().out
        assert f"{kept} already there, 0 failed" in told and "usdr could not run: put the weights there" in told
