"""Scores of excerpts -> means over songs with their uncertainty."""

import math

import numpy as np

from .results import Key, Result, pair_key
from .songs import Excerpt
from .systems import System

RESAMPLES = 1000
LEVEL = 0.95  # of the confidence intervals


def song_means(values: list[tuple[str, float | None]]) -> dict[str, float]:
    """Means over the excerpts of each song, from (song id, value); excerpts without a value do not count."""
    songs: dict[str, list[float]] = {}
    for song, value in values:
        songs.setdefault(song, [])
        if value is not None:
            songs[song].append(value)
    return {song: sum(found) / len(found) if found else math.nan for song, found in songs.items()}


def bootstrap_interval(values: np.ndarray, seed: int, resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """95 % confidence interval of the mean over songs, averaged over stems: percentiles over bootstrap samples.

    Args:
        values: `(songs, stems)`, NaN where a score is not defined.
        seed: of the bootstrap.

    Returns:
        (low, high); None if any stem is defined in one song only: nothing can be said of how it varies.
    """
    values = values[~np.isnan(values).all(axis=1)]
    if (~np.isnan(values)).sum(axis=0).min() < 2:
        return None
    samples = values[np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))]
    means = nan_mean(samples, axis=1).mean(axis=-1)
    low, high = np.nanpercentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """`numpy.nanmean` that does not warn where nothing is defined."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=axis) / defined.sum(axis=axis)


def summarize_score(by_stem: dict[str, list[tuple[str, float | None]]], stems: list[str], seed: int) -> dict[str, dict]:
    """One score of one system: stem -> mean, low, high, num_songs; and "mean", over stems, if it has them all.

    Args:
        by_stem: stem -> (song id, value) of every excerpt.
    """
    columns = {stem: song_means(by_stem[stem]) for stem in stems if stem in by_stem}
    songs = sorted({song for column in columns.values() for song in column})
    table = {stem: np.array([column.get(song, math.nan) for song in songs]) for stem, column in columns.items()}
    cells = {stem: summarize_columns(column[:, None], seed) for stem, column in table.items()}
    if len(table) == len(stems) > 1:
        cells["mean"] = summarize_columns(np.stack(list(table.values()), axis=1), seed)
    return cells


def summarize_columns(values: np.ndarray, seed: int) -> dict:
    """`(songs, stems)` -> mean over songs, then stems, with its interval; None where it is not defined."""
    mean = nan_mean(values, axis=0).mean()
    if math.isnan(mean):
        return {"mean": None, "low": None, "high": None, "num_songs": 0}
    low, high = bootstrap_interval(values, seed) or (None, None)
    num_songs = int((~np.isnan(values).all(axis=1)).sum())
    return {"mean": float(mean), "low": low, "high": high, "num_songs": num_songs}


def summarize(
    systems: list[System],
    excerpts: list[Excerpt],
    results: dict[Key, Result],
    scores: list[str],
    stems: list[str],
    seed: int,
    ablations: list[str],
) -> dict:
    """All that tables say, of these systems, excerpts and scores alone.

    Args:
        results: of everything in the folder, see `results.collect`.
        seed: of the bootstrap.
        ablations: names of systems. Every other system is compared with the first of these that is generative like it,
            or not generative like it.
    """
    by_system = {}
    for system in systems:
        found = {excerpt.name: results.get(pair_key(system, excerpt)) for excerpt in excerpts}
        by_system[system.name] = {name: result for name, result in found.items() if result is not None}
    reached = [result for found in by_system.values() for result in found.values()]
    references = {system.generative: system.name for system in reversed(systems) if system.name in ablations}
    summaries = {}
    for system in systems:
        found, reference = by_system[system.name], references.get(system.generative, system.name)
        summary = {"identity": system.identity, "generative": system.generative}
        summary |= summarize_system(found, scores, stems, seed)
        if reference != system.name:
            differences = summarize_differences(found, by_system[reference], scores, stems, seed)
            summary |= {"reference": reference, "differences": differences}
        summaries[system.name] = summary
    versions: dict[str, dict[str, None]] = {}  # of each metric, in order and once: several after an update
    for result in reached:
        for metric, version in result.versions.items():
            versions.setdefault(metric, {})[version] = None
    return {
        "date": max((result.date for result in reached), default="")[:10],
        "num_songs": len({excerpt.song.id for excerpt in excerpts}),
        "num_excerpts": len(excerpts),
        "num_resamples": RESAMPLES,
        "versions": {metric: " and ".join(found) for metric, found in versions.items()},
        "systems": summaries,
    }


def summarize_system(results: dict[str, Result], scores: list[str], stems: list[str], seed: int) -> dict:
    """Everything that tables say of one system.

    Args:
        results: by excerpt, of the excerpts that were reached.
        scores: those asked for.
    """
    scored = {excerpt: result for excerpt, result in results.items() if result.finished}
    seconds = sum(result.seconds for result in scored.values())
    duration = sum(result.duration_s for result in scored.values())
    summary = {
        "num_songs": len({result.song for result in scored.values()}),
        "num_excerpts": len(scored),
        "seconds": seconds,
        "speed": duration / seconds if seconds > 0 else None,  # seconds of audio a second
        "scores": {},
        "failures": {excerpt: result.error for excerpt, result in results.items() if result.error is not None},
        "unavailable": {metric: reason for result in scored.values() for metric, reason in result.unavailable.items()},
    }
    for score in scores:
        values = {excerpt: result.scores[score] for excerpt, result in scored.items() if score in result.scores}
        if by_stem := values_by_stem(values, scored, stems):
            summary["scores"][score] = summarize_score(by_stem, stems, seed)
    return summary


def summarize_differences(
    results: dict[str, Result], reference: dict[str, Result], scores: list[str], stems: list[str], seed: int
) -> dict[str, dict]:
    """How much more a system has than a reference, as `summarize_score` has it; results by excerpt.

    What is averaged is the difference on each excerpt for which both have a value: how hard it is does not count.
    """
    differences = {}
    for score in scores:
        values = {}
        for excerpt in (excerpt for excerpt in results if excerpt in reference):
            ours, theirs = (found[excerpt].scores.get(score, {}) for found in (results, reference))
            values[excerpt] = {
                stem: None if ours[stem] is None or theirs[stem] is None else ours[stem] - theirs[stem]
                for stem in ours.keys() & theirs.keys()
            }
        if by_stem := values_by_stem(values, results, stems):
            differences[score] = summarize_score(by_stem, stems, seed)
    return differences


def values_by_stem(values: dict[str, dict[str, float | None]], results: dict[str, Result], stems: list[str]) -> dict:
    """Excerpt -> stem -> value becomes stem -> (song id, value) of all excerpts; without stems that none has."""
    return {
        stem: [(results[excerpt].song, found.get(stem)) for excerpt, found in values.items()]
        for stem in stems
        if any(stem in found for found in values.values())
    }
