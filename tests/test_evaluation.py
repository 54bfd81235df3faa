"""The protocol and the runs of an evaluation, with small systems and metrics."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import soundfile
import torch

from evaluation_mss.evaluation import evaluate
from evaluation_mss.metric_inputs import MetricUnavailable
from evaluation_mss.protocol import Metric, SongCodec, audible_segments, score_names, score_song
from evaluation_mss.results import read_records
from evaluation_mss.songs import EvaluationSong

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

    def read(self) -> EvaluationSong:
        self.reads += 1
        return replace(make_song(self.name, self.duration_s or 2.0), song_id=self.song.id)


def excerpts_of(*names: str, duration_s: float | None = None) -> list[FakeExcerpt]:
    return [FakeExcerpt(name, SimpleNamespace(id=name.partition("@")[0]), duration_s) for name in names]


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
    undefined = Metric(("nan",), lambda sounds: [math.nan])
    estimates = {"vocals": song.references[0], "bass": song.references[2]}
    scores, _ = score_song(song, estimates, {"several": several, "undefined": undefined})
    assert scores["one"] == {"vocals": 1} and scores["two"] == {"vocals": None}
    assert scores["nan"] == {"vocals": None, "bass": None}
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


def test_names_of_scores():
    names = score_names({"several": Metric(("one", "two"), level_of, segmented=True), **LEVEL}, with_codec=True)
    assert names == ["one", "two", "level", "one_codec", "two_codec"]


# Runs


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
    assert summary["num_songs"] == 2 and len(read_records(tmp_path)) == 6
    shorter = excerpts_of("a@1s", "a@2s", "b", duration_s=1.0)
    assert evaluate([newer], shorter, tmp_path, LEVEL).scored == 3


def test_a_run_adds_what_is_missing_and_overwrite_does_all_again(tmp_path):
    system, excerpts = FakeSystem(), excerpts_of("a")
    evaluate([system], excerpts, tmp_path, LEVEL)
    constant = {"constant": Metric(("constant",), lambda sounds: [4.0])}
    evaluate([system, FakeSystem("other one")], excerpts, tmp_path, {**LEVEL, **constant})
    assert [list(line["scores"]) for line in read_records(tmp_path)] == [["level"], ["constant"], ["level", "constant"]]
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


def test_a_system_that_fails_where_it_was_scored_before_is_reported_and_tried_again(tmp_path):
    system, excerpts = FakeSystem(), excerpts_of("a")
    evaluate([system], excerpts, tmp_path, LEVEL)
    system.fails_on = ["a"]
    more = {**LEVEL, "constant": Metric(("constant",), lambda sounds: [4.0])}
    report = evaluate([system], excerpts, tmp_path, more)
    assert (report.pending, len(report.failures)) == (0, 1)
    summary = json.loads((tmp_path / "summary.json").read_text())["systems"]["half"]
    assert summary["failures"] == {"a": "RuntimeError: no stems today"} and list(summary["scores"]) == ["level"]
    system.fails_on = []
    assert evaluate([system], excerpts, tmp_path, more).scored == 1
    system.fails_on = ["a"]
    evaluate([system], excerpts, tmp_path, more, overwrite=True)
    assert "What could not run" in (tmp_path / "tables.md").read_text()
    system.fails_on = []
    assert evaluate([system], excerpts, tmp_path, more).scored == 1
    assert "What could not run" not in (tmp_path / "tables.md").read_text()


def test_estimates_of_the_wrong_length_or_with_nan_are_failures(tmp_path):
    class Short(FakeSystem):
        def separate(self, song):
            return {"vocals": song.references[0][:, :-1]}

    class Broken(FakeSystem):
        def separate(self, song):
            return {"vocals": song.references[0] * math.nan}

    class Unreadable(FakeExcerpt):
        def read(self):
            raise ValueError("cut off")

    excerpts = [*excerpts_of("a"), Unreadable("b", SimpleNamespace(id="b"))]
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
    again = evaluate([system], excerpts_of("a"), tmp_path, metrics)
    assert again.kept == 1 and again.unavailable == report.unavailable
    weights.append("downloaded")
    report = evaluate([system], excerpts_of("a"), tmp_path, metrics)
    assert report.scored == 1 and read_records(tmp_path)[-1]["metrics"] == ["late"]
    assert "could not run" not in (tmp_path / "tables.md").read_text()


def test_codec_scores_of_another_codec_do_not_count(tmp_path):
    metrics = {"sign": Metric(("sign",), level_of, segmented=True), **LEVEL}
    first, second = FakeCodec(), FakeCodec()
    second.identity = "codec 1"
    for roundtrip, scored in ((None, 1), (first, 1), (first, 0), (second, 1), (None, 0)):
        assert evaluate([FakeSystem()], excerpts_of("a"), tmp_path, metrics, roundtrip).scored == scored
    assert [list(line["scores"]) for line in read_records(tmp_path)][1] == ["sign", "sign_codec"]
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
    assert [line["excerpt"] for line in read_records(tmp_path)] == ["a", "b"]
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
    assert report.scored == 1 and len(read_records(tmp_path)) == 4  # separated again, but not scored again
    kept = sorted(str(path.relative_to(tmp_path / "audio")) for path in (tmp_path / "audio").rglob("*.flac"))
    assert kept == sorted(
        [f"{name}/a/{stem}.flac" for name in ("half", "reference") for stem in STEMS] + ["mixture/a/mixture.flac"]
    )
    newer = FakeSystem(identity="v2", stems=["vocals"])
    evaluate([newer], excerpts, tmp_path, LEVEL, keep_audio=1)
    assert [path.name for path in (tmp_path / "audio" / "half" / "a").glob("*.flac")] == ["vocals.flac"]
    # An excerpt of another length begins at the same place and has the same name.
    systems = [newer, FakeSystem("none", stems=[])]
    assert not evaluate(systems, excerpts_of("a", duration_s=1.0), tmp_path, LEVEL, keep_audio=1).failures
    lengths = {path.parent.parent.name: soundfile.info(path).frames for path in tmp_path.glob("audio/*/a/*.flac")}
    assert lengths == {"half": RATE, "reference": RATE, "mixture": RATE}
