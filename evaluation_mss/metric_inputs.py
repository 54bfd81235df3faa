"""What the `evaluate` modules under metrics/ share: the kinds of input they take, and how it is read.

A signal is the path of a file, or an array `(T,)` or `(C, T)` whose rate is the keyword `sampling_rate` of `compute`.
Paths are much lighter: `evaluate` writes arrays to a table on disk first.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from processing_mss import read_audio


def signal_features(*names: str, stems: bool = False) -> list:
    """The alternatives for the inputs `names`, all of one kind: paths, `(T,)` or `(C, T)`; lists of those for `stems`.

    `evaluate` takes the first alternative that fits, and would take lists of arrays for lists of strings.
    """
    from datasets import Features, List, Value

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


def score_each(metric: Callable, sampling_rate: int | None, *columns: list) -> list:
    """`metric(*waveforms, rate)` of every row of the columns."""
    scores = []
    for row in zip(*columns):
        waveforms, rate = read_signals(list(row), sampling_rate)
        scores.append(metric(*waveforms, rate))
    return scores


def mean_score(scores: list[float]) -> float:
    """Mean of the scores that are defined; NaN if none is."""
    defined = [score for score in scores if not math.isnan(score)]
    return sum(defined) / len(defined) if defined else math.nan
