"""From the scores of excerpts to means with their uncertainty, and to tables."""

import math

import numpy as np
import pytest

from evaluation_mss.results import Result
from evaluation_mss.summary import bootstrap_interval, summarize_differences, summarize_score
from evaluation_mss.tables import render_tables

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


def test_differences_are_paired():
    """Excerpts far apart and systems a constant apart: the difference is certain, where the means are not."""

    def results(offsets: dict[str, float], excerpts: range) -> dict[str, Result]:
        found = {}
        for excerpt in excerpts:  # two of each song
            values = {stem: 10.0 * excerpt + offset for stem, offset in offsets.items()}
            found[f"excerpt{excerpt}"] = Result(f"song{excerpt // 2}", {"usdr": values})
        return found

    stems = ["vocals", "drums"]
    ours, theirs = results({"vocals": 0, "drums": 0}, range(16)), results({"vocals": 1, "drums": 0}, range(15))
    theirs["excerpt0"].scores["usdr"]["drums"] = None
    cells = summarize_differences(ours, theirs, ["usdr", "visqol"], stems, seed=0)["usdr"]
    # The last excerpt has no pair: its song counts by the other one.
    assert [cells["vocals"][key] for key in ("mean", "low", "high", "num_songs")] == [-1, -1, -1, 8]
    assert [cells["drums"][key] for key in ("mean", "low", "high", "num_songs")] == [0, 0, 0, 8]
    assert cells["mean"]["mean"] == -0.5
    wide = summarize_score({"vocals": [(str(index), 10.0 * index) for index in range(16)]}, stems, seed=0)["vocals"]
    assert wide["high"] - wide["low"] > 20
    vocals_alone = summarize_differences(results({"vocals": 0}, range(16)), theirs, ["usdr"], stems, seed=0)
    assert list(vocals_alone["usdr"]) == ["vocals"]


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
brackets the 95 % confidence interval, from 1000 bootstrap samples of songs (none for a single song); n is the number \
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
    difference = {"usdr": {"vocals": cell(-0.25, -0.5, 0.125), "drums": cell(1.0, num_songs=1)}}
    summary["systems"]["a1"] |= {"reference": "full", "differences": difference}
    table = render_tables(summary).split("## Table 3 (ablations): differences from the first model\n")[1].split("##")[0]
    assert "usdr: torchmetrics 1.9.0; seed 7; 2026-11-22; 2 songs. How much more" in table
    assert "| a1 | full | usdr (dB) | -0.25 [-0.50, 0.12] | 1.00 (n=1) | - | 2 | `hash a1` |" in table.splitlines()
