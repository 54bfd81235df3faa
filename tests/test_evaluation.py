"""The protocol, runs and tables of an evaluation, with small systems and metrics; then the command with real ones."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from commands_mss import evaluate as command
from commands_mss.main import main
from data_mss.manifest import read_manifest
from evaluation_mss.errors import MetricUnavailable
from evaluation_mss.evaluation import evaluate
from evaluation_mss.protocol import METRICS, SCORES, Metric, SongCodec, audible_segments, score_song
from evaluation_mss.score_lines import read_records
from evaluation_mss.songs import EvaluationSong
from evaluation_mss.summary import bootstrap_interval, summarize_score
from evaluation_mss.tables import render_tables
from processing_mss import write_audio
from tests.tiny import small_corpus

RATE = 100  # hertz: fast, and no metric here minds
STEMS = ["vocals", "drums", "bass", "other"]


def make_song(name: str = "song", seconds: float = 25.0, level: float = 0.1) -> EvaluationSong:
    generator = torch.Generator().manual_seed(len(name))
    references = level * torch.randn(4, 2, int(seconds * RATE), generator=generator)
    return EvaluationSong(name, name, RATE, references, references.sum(dim=0), STEMS)


@dataclass
class FakeExcerpt:
    name: str
    song: SimpleNamespace
    duration_s: float | None = None
    reads: int = 0

    def read(self, stems) -> EvaluationSong:
        self.reads += 1
        return replace(make_song(self.name, 2.0), song_id=self.song.id)


def excerpts_of(*names: str) -> list[FakeExcerpt]:
    return [FakeExcerpt(name, SimpleNamespace(id=name.partition("@")[0], folder=".")) for name in names]


class FakeSystem:
    """Halves the true stems; counts its calls; fails on songs that it is told to."""

    def __init__(self, name: str = "half", stems=STEMS, fails_on=(), identity: str = "v1", generative: bool = False):
        self.name, self.stems, self.identity, self.generative = name, list(stems), identity, generative
        self.fails_on, self.calls = fails_on, []

    def separate(self, song):
        self.calls.append(song.name)
        if song.name in self.fails_on:
            raise RuntimeError("no stems today")
        return {stem: song.references[song.stems.index(stem)] / 2 for stem in self.stems}


def level_of(sounds) -> list[float]:
    return [sounds.estimate.abs().max().item()]


LEVEL = {"level": Metric(("level",), level_of)}


# The protocol


def test_segments_end_with_the_song_and_need_an_audible_reference():
    loud = torch.full((2, 25 * RATE), 0.1)
    assert audible_segments(loud, RATE) == [slice(0, 1000), slice(1000, 2000), slice(1500, 2500)]
    assert audible_segments(loud[:, : 20 * RATE], RATE) == [slice(0, 1000), slice(1000, 2000)]
    assert audible_segments(loud[:, :700], RATE) == [slice(0, 700)]
    for level_db, number in ((-49.9, 3), (-50.1, 0)):
        assert len(audible_segments(torch.full((2, 2500), 10 ** (level_db / 20)), RATE)) == number
    partly = loud.clone()
    partly[:, 1000:] = 0
    assert audible_segments(partly, RATE) == [slice(0, 1000)]
    opposite = torch.stack((loud[0], -loud[0]))  # what listening models hear is the mono mix
    assert audible_segments(opposite, RATE) == []


def test_segmented_scores_are_means_over_audible_segments():
    song = make_song()
    song.references[0, :, 1000:1500] = 0
    song.references[0, :, 1500:] = 0.3
    song.references[1] = 0
    heard = []

    def start(sounds):
        heard.append(sounds.estimate.shape)
        return [sounds.estimate[0, 0].item()]

    ramp = torch.arange(2500.0)[None]  # mono, and says where a segment begins
    metrics = {"start": Metric(("start",), start, segmented=True), **LEVEL}
    scores, reasons = score_song(song, {"vocals": ramp, "drums": ramp}, metrics)
    assert scores["start"] == {"vocals": (0 + 1000 + 1500) / 3, "drums": None}  # a silent reference: not defined
    assert set(heard) == {(2, 1000)}  # the mono estimate counts for both channels
    assert scores["level"] == {"vocals": 2499, "drums": 2499} and reasons == {}


def test_metrics_for_vocals_only_and_values_that_are_no_numbers():
    song = make_song(seconds=12)
    several = Metric(("one", "two"), lambda sounds: [1, math.inf], segmented=True, stems=("vocals",))
    undefined = Metric(("nan",), lambda sounds: [math.nan], segmented=True, of_silence=1.0)
    estimates = {"vocals": torch.zeros(1, 1200), "bass": song.references[2]}
    scores, _ = score_song(song, estimates, {"several": several, "undefined": undefined})
    assert scores["one"] == {"vocals": 1} and scores["two"] == {"vocals": None}
    assert scores["nan"] == {"vocals": 1.0, "bass": None}  # silence is bad, not undefined
    json.dumps(scores, allow_nan=False)


def test_joint_metrics_get_all_stems_and_true_ones_for_those_that_are_not_estimated():
    song = make_song(seconds=3)

    def differing(sounds):
        return [float((estimate != true).any()) for estimate, true in zip(sounds.estimate, sounds.reference)]

    metric = {"differs": Metric(("differs",), differing, joint=True)}
    scores, _ = score_song(song, {"bass": torch.zeros(1, 300)}, metric)
    assert scores["differs"] == {"bass": 1.0}
    scores, _ = score_song(song, dict(zip(STEMS, song.references)), metric)
    assert scores["differs"] == dict.fromkeys(STEMS, 0.0)
    song.references[2] = 1e-4  # -80 dBFS
    scores, _ = score_song(song, dict(zip(STEMS, song.references)), metric)
    assert scores["differs"] == {"vocals": 0.0, "drums": 0.0, "bass": None, "other": 0.0}


def test_a_metric_that_cannot_run_says_why_and_the_rest_go_on():
    def without_weights(sounds):
        raise MetricUnavailable("put the weights there")

    def broken(sounds):
        raise ZeroDivisionError("by zero")

    metrics = {"first": Metric(("first",), without_weights), "second": Metric(("second",), broken, True), **LEVEL}
    scores, reasons = score_song(make_song(), {"vocals": torch.ones(1, 2500)}, metrics)
    assert reasons == {"first": "put the weights there", "second": "ZeroDivisionError: by zero"}
    assert scores == {"level": {"vocals": 1.0}}


class FakeCodec:
    """A round trip that inverts the polarity of the mono mix."""

    identity = "codec 0"

    def __init__(self):
        self.calls = []

    def __call__(self, waveforms, sampling_rate, gain=1.0):
        self.calls.append((len(waveforms), gain))
        return -waveforms.mean(dim=1)


@pytest.mark.parametrize("generative", [False, True])
def test_codec_scores_send_references_and_estimates_unless_they_are_a_codecs_output(generative):
    song, roundtrip = make_song(seconds=10), FakeCodec()

    def same_sign(sounds):
        return [torch.sign(sounds.estimate.mean() * sounds.reference.mean()).item()]

    song.references[:] = song.references.abs()
    metrics = {"sign": Metric(("sign",), same_sign, segmented=True), **LEVEL}
    codec = SongCodec(roundtrip, song)
    for _ in range(2):
        scores, _ = score_song(song, dict(zip(STEMS, song.references)), metrics, codec, generative)
    assert scores["sign"] == dict.fromkeys(STEMS, 1.0) and "level_codec" not in scores
    assert scores["sign_codec"] == dict.fromkeys(STEMS, -1.0 if generative else 1.0)
    assert [number for number, _ in roundtrip.calls] == ([4] if generative else [4, 4, 4])  # references once
    level = song.mixture.mean(dim=0).square().mean().sqrt() * roundtrip.calls[0][1]
    assert level.item() == pytest.approx(0.1, rel=1e-4)  # stems are heard at the level that they have in such a mixture


def test_names_of_scores_and_what_the_command_offers():
    assert {"visqol", "visqol_codec", "dnsmos_ovrl_codec", "nisqa", "usdr", "mel_distance"} <= set(SCORES)
    assert "usdr_codec" not in SCORES
    assert command.METRICS == list(METRICS)
    from evaluation_mss.baselines import BASELINES
    from evaluation_mss.bounds import BOUNDS

    assert command.BASELINES == list(BASELINES) and command.BOUNDS == list(BOUNDS)


# Means and their uncertainty


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(3, 1, (40, 1)), seed, resamples=300)
        covered.append(low <= 3 <= high)
    assert 0.88 <= np.mean(covered) <= 0.99
    values = rng.normal(3, 1, (40, 2))
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    # The mean of 80 independent values: 1.96 / sqrt(80) on each side.
    assert (high - low) / 2 == pytest.approx(0.219, rel=0.2)


def test_intervals_of_one_song_equal_songs_and_gaps():
    assert bootstrap_interval(np.array([[1.0], [math.nan]]), seed=0) is None
    assert bootstrap_interval(np.full((5, 1), 2.0), seed=0) == (2.0, 2.0)
    assert bootstrap_interval(np.array([[1.0, math.nan], [3.0, 2.0], [2.0, math.nan]]), seed=0) is None
    low, high = bootstrap_interval(np.array([[1.0, math.nan], [3.0, 2.0], [2.0, 4.0]]), seed=0)
    assert 1 < low < high < 4


def test_means_are_over_excerpts_then_songs_then_stems():
    vocals = [("a", 1.0), ("a", 3.0), ("b", 6.0), ("c", None)]  # songs: 2 and 6
    cells = summarize_score({"vocals": vocals, "drums": [(song, 8.0) for song, _ in vocals]}, ["vocals", "drums"], 0)
    assert cells["vocals"]["mean"] == 4 and cells["vocals"]["num_songs"] == 2
    assert cells["drums"]["mean"] == 8 and cells["drums"]["num_songs"] == 3
    assert cells["mean"]["mean"] == 6
    # A mean over some of the stems cannot be compared to one over all.
    assert "mean" not in summarize_score({"vocals": vocals}, ["vocals", "drums"], 0)


# Runs


def lines_of(folder) -> list[dict]:
    return read_records(folder)


def test_a_second_run_computes_nothing_and_another_checkpoint_everything(tmp_path):
    system, excerpts = FakeSystem(), excerpts_of("a@1s", "a@2s", "b")
    report = evaluate([system], excerpts, tmp_path, LEVEL)
    assert (report.scored, report.kept, report.pending) == (3, 0, 0)
    first = (tmp_path / "tables.md").read_text()
    report = evaluate([system], excerpts, tmp_path, LEVEL)
    assert (report.scored, report.kept) == (0, 3) and len(system.calls) == 3
    assert [excerpt.reads for excerpt in excerpts] == [1, 1, 1]
    assert (tmp_path / "tables.md").read_text() == first
    newer = FakeSystem(identity="v2")
    assert evaluate([newer], excerpts, tmp_path, LEVEL).scored == 3
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["systems"]["half"]["identity"] == "v2" and summary["systems"]["half"]["num_excerpts"] == 3
    assert summary["num_songs"] == 2 and len(lines_of(tmp_path)) == 6
    shorter = [replace(excerpt, duration_s=1.0) for excerpt in excerpts]
    assert evaluate([newer], shorter, tmp_path, LEVEL).scored == 3


def test_a_run_adds_what_is_missing_and_overwrite_does_all_again(tmp_path):
    system, excerpts = FakeSystem(), excerpts_of("a")
    evaluate([system], excerpts, tmp_path, LEVEL)
    constant = {"constant": Metric(("constant",), lambda sounds: [4.0])}
    evaluate([system, FakeSystem("other one")], excerpts, tmp_path, {**LEVEL, **constant})
    assert [list(line["scores"]) for line in lines_of(tmp_path)] == [["level"], ["constant"], ["level", "constant"]]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["systems"]["half"]["scores"]) == {"level", "constant"}
    changed = {"constant": Metric(("constant",), lambda sounds: [5.0])}
    assert evaluate([system], excerpts, tmp_path, changed, overwrite=True).scored == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["systems"]["half"]["scores"]["constant"]["mean"]["mean"] == 5.0
    assert list(summary["systems"]["half"]["scores"]) == ["constant"]  # what was asked for


def test_a_failing_system_does_not_stop_the_others_and_is_tried_again(tmp_path):
    systems, excerpts = [FakeSystem("bad", fails_on=["a"]), FakeSystem("good")], excerpts_of("a", "b")
    report = evaluate(systems, excerpts, tmp_path, LEVEL)
    assert report.scored == 3 and report.pending == 0
    assert report.failures == {"bad on a": "RuntimeError: no stems today"} and "no stems today" in str(report)
    assert "- bad on a: RuntimeError: no stems today" in (tmp_path / "tables.md").read_text()
    systems[0].fails_on = []
    report = evaluate(systems, excerpts, tmp_path, LEVEL)
    assert (report.scored, report.kept, report.failures) == (1, 3, {})
    assert "What could not run" not in (tmp_path / "tables.md").read_text()


def test_estimates_of_the_wrong_length_or_with_nan_are_failures(tmp_path):
    class Short(FakeSystem):
        def separate(self, song):
            return {"vocals": song.references[0][:, :-1]}

    class Broken(FakeSystem):
        def separate(self, song):
            return {"vocals": song.references[0] * math.nan}

    class Unreadable(FakeExcerpt):
        def read(self, stems):
            raise ValueError("cut off")

    excerpts = [*excerpts_of("a"), Unreadable("b", SimpleNamespace(id="b", folder="."))]
    report = evaluate([Short("short"), Broken("broken"), FakeSystem()], excerpts, tmp_path, LEVEL)
    assert report.scored == 1 and len(report.failures) == 5
    assert "(2, 199)" in report.failures["short on a"] and "NaN" in report.failures["broken on a"]
    assert report.failures["half on b"] == "ValueError: cut off"


def test_a_metric_that_could_not_run_is_tried_when_it_can(tmp_path):
    weights = []

    def compute(sounds):
        if not weights:
            raise MetricUnavailable("put the weights there")
        return [2.0]

    metrics, system = {**LEVEL, "late": Metric(("late",), compute, segmented=True)}, FakeSystem()
    report = evaluate([system], excerpts_of("a"), tmp_path, metrics)
    assert report.unavailable == {"late": "put the weights there"} and not report.failures
    assert "- late: put the weights there" in (tmp_path / "tables.md").read_text()
    assert evaluate([system], excerpts_of("a"), tmp_path, metrics).kept == 1
    weights.append("downloaded")
    report = evaluate([system], excerpts_of("a"), tmp_path, metrics)
    assert report.scored == 1 and lines_of(tmp_path)[-1]["metrics"] == ["late"]
    assert "could not run" not in (tmp_path / "tables.md").read_text()


def test_codec_scores_of_another_codec_do_not_count(tmp_path):
    metrics = {"sign": Metric(("sign",), level_of, segmented=True), **LEVEL}
    first, second = FakeCodec(), FakeCodec()
    second.identity = "codec 1"
    for roundtrip, scored in ((None, 1), (first, 1), (first, 0), (second, 1), (None, 0)):
        assert evaluate([FakeSystem()], excerpts_of("a"), tmp_path, metrics, roundtrip).scored == scored
    assert [list(line["scores"]) for line in lines_of(tmp_path)][1] == ["sign", "sign_codec"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["systems"]["half"]["scores"]) == {"sign", "level"} and summary["codec"] is None


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    excerpts = excerpts_of("a", "b")
    evaluate([FakeSystem()], excerpts, tmp_path, LEVEL)
    path = next(tmp_path.glob("scores-*.jsonl"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    system = FakeSystem()
    assert evaluate([system], excerpts, tmp_path, LEVEL).scored == 1 and system.calls == ["b"]
    assert [line["excerpt"] for line in lines_of(tmp_path)] == ["a", "b"]
    assert path.read_bytes().endswith(b"\n")


def test_shards_share_the_work_and_the_last_one_has_all_scores(tmp_path):
    excerpts, systems = excerpts_of("a", "b", "c"), [FakeSystem(), FakeSystem("other one", stems=["vocals"])]
    first = evaluate(systems, excerpts, tmp_path, LEVEL, shard_index=0, num_shards=2)
    assert (first.scored, first.pending) == (4, 2)
    assert "**Not finished: 2 separations still to do.**" in (tmp_path / "tables.md").read_text()
    second = evaluate(systems, excerpts, tmp_path, LEVEL, shard_index=1, num_shards=2)
    assert (second.scored, second.pending) == (2, 0)
    assert sorted(path.name for path in tmp_path.glob("scores-*")) == [
        "scores-00000-of-00002.jsonl",
        "scores-00001-of-00002.jsonl",
    ]
    whole = tmp_path / "at once"
    evaluate(systems, excerpts, whole, LEVEL)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, whole))
    for name in ("half", "other one"):
        assert ours["systems"][name]["scores"] == theirs["systems"][name]["scores"]
    assert evaluate(systems, excerpts, tmp_path, LEVEL).kept == 6  # another number of shards
    more = {**LEVEL, "constant": Metric(("constant",), lambda sounds: [4.0])}
    assert evaluate(systems, excerpts, tmp_path, more, shard_index=1, num_shards=2).pending == 4


@pytest.mark.parametrize("names", [["a", "a"], ["a/b"], [".."], []])
def test_names_of_systems(tmp_path, names):
    with pytest.raises(ValueError, match=r"names of their own|no system"):
        evaluate([FakeSystem(name) for name in names], excerpts_of("a"), tmp_path, LEVEL)


def test_kept_audio_is_of_the_checkpoint_that_was_scored(tmp_path):
    excerpts, bound = excerpts_of("a", "b"), FakeSystem("mixture")
    evaluate([FakeSystem(), bound], excerpts, tmp_path, LEVEL)
    assert not (tmp_path / "audio").exists()
    report = evaluate([FakeSystem(), bound], excerpts, tmp_path, LEVEL, keep_audio=1)
    assert report.scored == 1 and len(lines_of(tmp_path)) == 4  # separated again, but not scored again
    kept = sorted(str(path.relative_to(tmp_path / "audio")) for path in (tmp_path / "audio").rglob("*.flac"))
    assert kept == sorted(
        [f"{name}/a/{stem}.flac" for name in ("half", "reference") for stem in STEMS] + ["mixture/a/mixture.flac"]
    )
    newer = FakeSystem(identity="v2", stems=["vocals"])
    evaluate([newer], excerpts, tmp_path, LEVEL, keep_audio=1)
    assert [path.name for path in (tmp_path / "audio" / "half" / "a").glob("*.flac")] == ["vocals.flac"]


# Tables


def cell(mean, low=None, high=None, num_songs=2):
    return {"mean": mean, "low": low, "high": high, "num_songs": num_songs}


def make_summary(**systems) -> dict:
    common = {"generative": False, "num_songs": 2, "num_excerpts": 4, "seconds": 8.0, "speed": 10.0}
    return {
        "description": "Split test of musdb18, whole songs",
        "seed": 7,
        "ablations": [],
        "date": "2026-11-22",
        "stems": ["vocals", "drums"],
        "num_songs": 2,
        "num_excerpts": 4,
        "num_pending": 0,
        "num_resamples": 1000,
        "codec": "codec abc",
        "versions": {"visqol": "visqol-python 3.8.0", "dnsmos": "speechmos 0.0.1.1", "usdr": "torchmetrics 1.9.0"},
        "systems": {
            name: {**common, "identity": f"hash {name}", "failures": {}, "unavailable": {}, **entry}
            for name, entry in systems.items()
        },
    }


def test_tables_of_given_scores():
    visqol = {"vocals": cell(3.214, 3.1, 3.333), "drums": cell(4.0, num_songs=1), "mean": cell(3.607, 3.5, 3.7)}
    summary = make_summary(
        **{
            "ours": {"scores": {"visqol": visqol, "usdr": {"vocals": cell(-1.005, -2, 0)}}},
            "a|b": {
                "scores": {"visqol": {"vocals": cell(None)}, "dnsmos_sig": {"vocals": cell(2.5)}},
                "unavailable": {"nisqa": "needs\nits weights"},
            },
        }
    )
    summary["systems"]["a|b"]["scores"]["visqol_codec"] = {"vocals": cell(1.0)}
    assert render_tables(summary) == GOLDEN_TABLES


GOLDEN_TABLES = """\
# Evaluation

Split test of musdb18, whole songs: 2 songs, 4 excerpts. Means over songs, of each song over its excerpts; in \
brackets the 95 % confidence interval, from 1000 bootstrap draws of songs (none for a single song); n is the number \
of songs in which a score is defined, where that is not all. A dash stands for no estimate, or for a score that is \
not defined.

## Table 1: ViSQOL

visqol: visqol-python 3.8.0; seed 7; 2026-11-22; 2 songs.

| system | vocals | drums | mean | songs | checkpoint |
| --- | ---: | ---: | ---: | ---: | --- |
| ours | 3.21 [3.10, 3.33] | 4.00 (n=1) | 3.61 [3.50, 3.70] | 2 | `hash ours` |
| a\\|b | - | - | - | 2 | `hash a\\|b` |

## Table 1: ViSQOL through the codec

visqol: visqol-python 3.8.0; codec abc; seed 7; 2026-11-22; 2 songs. As in the paper, the references went through the \
codec, and the estimates too, unless they are a codec's output already.

| system | vocals | drums | mean | songs | checkpoint |
| --- | ---: | ---: | ---: | ---: | --- |
| a\\|b | 1.00 | - | - | 2 | `hash a\\|b` |

## Table 2: vocals

dnsmos: speechmos 0.0.1.1; seed 7; 2026-11-22; 2 songs.

| system | SIG | BAK | OVRL | NISQA | songs | checkpoint |
| --- | ---: | ---: | ---: | ---: | ---: | --- |
| a\\|b | 2.50 | - | - | - | 2 | `hash a\\|b` |

## Signal scores

usdr: torchmetrics 1.9.0; seed 7; 2026-11-22; 2 songs.

| system | score | vocals | drums | mean | songs | checkpoint |
| --- | --- | ---: | ---: | ---: | ---: | --- |
| ours | usdr (dB) | -1.00 [-2.00, 0.00] | - | - | 2 | `hash ours` |

## What ran

| system | excerpts | failed | seconds | x real time |
| --- | ---: | ---: | ---: | ---: |
| ours | 4 | 0 | 8.0 | 10.00 |
| a\\|b | 4 | 0 | 8.0 | 10.00 |

## What could not run

- nisqa: needs its weights
"""


def test_several_models_make_table_3():
    visqol = {"visqol": {stem: cell(3.0) for stem in ("vocals", "drums", "mean")}}
    summary = make_summary(bound={"scores": visqol}, full={"scores": visqol}, a1={"scores": visqol})
    assert "Table 3" not in render_tables(summary)
    summary["ablations"] = ["full", "a1"]
    table = render_tables(summary).split("## Table 3 (ablations): ViSQOL\n")[1].split("##")[0]
    names = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert names == ["| system", "| ---", "| full", "| a1"]


# The command, with the real parts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"), songs=2, seconds=2.0)


def evaluate_corpus(corpus, output_dir, *arguments: str) -> int:
    songs = ["--manifests", str(corpus), "--split", "train", "--output_dir", str(output_dir)]
    return main(["evaluate", *songs, "--metrics", "usdr", "si_sdr", "csdr", "mel_distance", *arguments])


def test_the_command_from_manifest_to_tables(corpus, tmp_path, model_dir, capsys):
    pytest.importorskip("torchmetrics", reason="si_sdr and usdr need torchmetrics")
    songs = [song for song in read_manifest(corpus) if song.split == "train"]
    for song in songs:  # what another program made: only vocals, mono, at another rate
        quarter = np.load(song.paths("vocals")[0])[None, ::2].astype(np.float32) / 32768
        write_audio(tmp_path / "theirs" / song.id / "Lead Vocals.wav", quarter, 24000)
    arguments = ["--model", model_dir, "--bounds", "mixture", "ideal_ratio_mask", "--outputs", "filtered"]
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
    assert "| mss-lm filtered | csdr (dB) |" in text and "torchmetrics" in text and "seed 0" in text
    assert summary["systems"]["mss-lm filtered"]["identity"] in text

    assert evaluate_corpus(corpus, out, *arguments) == 0
    assert "0 separations scored, 8 already there" in capsys.readouterr().out
    assert (out / "tables.md").read_text() == text

    for shard in ("0", "1"):
        sharded = ["--bounds", "mixture", "--shard_index", shard, "--num_shards", "2"]
        assert evaluate_corpus(corpus, tmp_path / "sharded", *sharded) == 0
    both = json.loads((tmp_path / "sharded" / "summary.json").read_text())
    assert both["systems"]["mixture"]["scores"] == summary["systems"]["mixture"]["scores"]


def test_the_commands_excerpts_and_report(corpus, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    arguments = ["--bounds", "ideal_ratio_mask", "--excerpt_s", "0.5", "--starts_s", "0.2", "1.2", "--max_songs", "1"]
    assert evaluate_corpus(corpus, tmp_path, *arguments, "--report", "--report_excerpts", "1") == 0
    assert {line["excerpt"] for line in lines_of(tmp_path)} == {"song0@0.2s", "song0@1.2s"}
    assert {line["duration_s"] for line in lines_of(tmp_path)} == {0.5}
    assert "ideal_ratio_mask/song0%400.2s/vocals.flac" in (tmp_path / "report.html").read_text()
    assert "report.html" in capsys.readouterr().out and (tmp_path / "pictures" / "song0@0.2s.png").is_file()
    assert "excerpts of 0.5 s" in (tmp_path / "tables.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model, --baseline, --stems_dir or --bounds"),
        (["--bounds", "mixture", "--codec_roundtrip"], "needs --codec"),
        (["--bounds", "codec"], "needs a whole codec"),
        (["--stems_dir", "folder"], "NAME=FOLDER"),
        (["--baseline", "unmix"], "must be one of"),
        (["--bounds", "mixture", "--starts_s", "3"], "excerpt_s"),
        (["--bounds", "mixture", "mixture"], "names of their own"),
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
