"""What the `evaluate` modules under metrics/ share: the kinds of input they take, how it is read, and what they return.

A signal is the path of a file, or an array `(T,)` or `(C, T)` whose rate is the keyword `sampling_rate` of `compute`.
Paths are much lighter: `evaluate` writes arrays to a table on disk first.
"""

import math

import evaluate
import numpy as np
import torch
from datasets import Features, List, Value

from processing_mss import read_audio

from .metric_table import METRICS, Sounds

# Inputs of `compute`: what they are, and an example. A joint metric needs all stems of a song at once.
INPUTS = {
    "predictions": ("estimates; a list of paths, or of arrays (T,) or (C, T)", '["estimate.wav"]'),
    "references": ("true signals, as predictions", '["vocals.wav"]'),
    "mixtures": ("what the estimates were made from, as predictions", '["song.wav"]'),
}
JOINT_INPUTS = {
    "predictions": (
        "songs; of each, a list of the stems' estimates: paths, or an array (S, C, T)",
        '[["my_vocals.wav", "my_drums.wav"]]',
    ),
    "references": ("true stems, as predictions and in the same order", '[["vocals.wav", "drums.wav"]]'),
}


class MetricModule(evaluate.Metric):
    """A metric of `METRICS` as an `evaluate` module.

    `evaluate.load` looks for the first such class in a file of the module's own name, so each metric has a small one.
    `compute` returns the mean of every score over the rows in which it is defined, NaN if there is none; a metric that
    needs all stems of a song at once returns the means of each stem, `NAME_stems`, too.
    """

    metric: str  # its name in the table

    def _info(self):
        metric = METRICS[self.metric]
        return evaluate.MetricInfo(
            description=metric.description,
            citation=metric.citation,
            inputs_description=describe_inputs(self.metric),
            features=signal_features(metric.inputs, stems=metric.joint),
            reference_urls=list(metric.urls),
        )

    def _compute(self, predictions, references=None, mixtures=None, sampling_rate=None):
        metric, rows = METRICS[self.metric], []
        if not metric.needs_rate:
            sampling_rate = sampling_rate or 0
        for row in zip(*(column for column in (predictions, references, mixtures) if column is not None)):
            if metric.joint:
                signals, rate = read_signals([signal for song in row for signal in song], sampling_rate)
                signals = [signals[: len(row[0])], signals[len(row[0]) :]]
            else:
                signals, rate = read_signals(list(row), sampling_rate)
            rows.append(list(metric.compute(Sounds(*signals, *[None] * (3 - len(signals)), rate))))
        columns = [mean_score(column) for column in zip(*rows)]
        if not metric.joint:
            return dict(zip(metric.scores, columns))
        (score,) = metric.scores
        return {score: mean_score([value for row in rows for value in row]), f"{score}_stems": columns}


def describe_inputs(name: str) -> str:
    """What `compute` takes and returns, with an example."""
    metric = METRICS[name]
    inputs = {argument: (JOINT_INPUTS if metric.joint else INPUTS)[argument] for argument in metric.inputs}
    arguments = "".join(f"    {argument}: {text}.\n" for argument, (text, _) in inputs.items())
    example = ", ".join(f"{argument}={files}" for argument, (_, files) in inputs.items())
    stems = f"    {name}_stems: for each stem, the same over songs.\n" if metric.joint else ""
    no_rate = "" if metric.needs_rate else " The score does not depend on it."
    return (
        f"Args:\n{arguments}    sampling_rate: of arrays, in hertz (Hz); files know theirs.{no_rate}\n\n"
        f"Returns:\n    {', '.join(metric.scores)}: mean over all for which it is defined, or NaN.\n{stems}\n"
        f'Example:\n    >>> {name} = evaluate.load("evaluation_mss/metrics/{name}")\n'
        f"    >>> {name}.compute({example})\n"
    )


def signal_features(names: tuple[str, ...], stems: bool = False) -> list[Features]:
    """The alternatives for the inputs `names`, all of one kind: paths, `(T,)` or `(C, T)`; lists of those for `stems`.

    `evaluate` takes the first alternative that fits, and would take lists of arrays for lists of strings.
    """
    samples = Value("float32")
    kinds = [List(List(List(samples))), List(Value("string"))] if stems else [Value("string"), List(samples)]
    kinds += [] if stems else [List(List(samples))]
    return [Features(dict.fromkeys(names, kind)) for kind in kinds]


def read_signals(items: list, sampling_rate: int | None) -> tuple[list[torch.Tensor], int]:
    """Paths or arrays -> their waveforms, `(T,)` or `(C, T)`, and the rate in hertz (Hz) that they share.

    Raises:
        ValueError: arrays without a rate, or files of different rates.
    """
    if isinstance(items[0], str):
        files = [read_audio(path) for path in items]
        rates = {rate for _, rate in files}
        if len(rates) > 1:
            raise ValueError(f"{items} have different sampling rates, {sorted(rates)} Hz: resample them to one first.")
        return [torch.from_numpy(waveform) for waveform, _ in files], rates.pop()
    if sampling_rate is None:
        raise ValueError("Arrays do not say their rate: compute(..., sampling_rate=44100), or give paths of files.")
    return [torch.from_numpy(np.asarray(samples, dtype=np.float32)) for samples in items], sampling_rate


def mean_score(scores: list[float]) -> float:
    """Mean of the scores that are defined; NaN if none is."""
    defined = [score for score in scores if not math.isnan(score)]
    return sum(defined) / len(defined) if defined else math.nan
