"""The SDR of the Music Demixing Challenge as an `evaluate` module."""

import evaluate

from evaluation_mss.metric_inputs import mean_score, score_each, signal_features
from evaluation_mss.signal_metrics import usdr

_DESCRIPTION = """\
Signal-to-distortion ratio over the whole signal in dB, over all channels together, as in the Music Demixing Challenge
2021 ("utterance SDR"). Computed by torchmetrics. Silent references are not defined and left out.
"""

_CITATION = """\
@article{mitsufuji2022mdx,
  title = {Music Demixing Challenge 2021},
  author = {Mitsufuji, Yuki and Fabbro, Giorgio and Uhlich, Stefan and St{\\"o}ter, Fabian-Robert and
    D{\\'e}fossez, Alexandre and others},
  journal = {Frontiers in Signal Processing},
  year = {2022}
}
"""

_INPUTS = """\
Args:
    predictions: estimates; a list of paths, or of arrays (T,) or (C, T).
    references: true signals, as predictions.
    sampling_rate: of arrays, in hertz (Hz); files know theirs.

Returns:
    usdr: mean over the pairs whose reference is not silent, in dB; NaN if none is.

Example:
    >>> usdr = evaluate.load("evaluation_mss/metrics/usdr")
    >>> usdr.compute(predictions=["estimate.wav"], references=["vocals.wav"])
"""


class Usdr(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=signal_features("predictions", "references"),
            reference_urls=["https://arxiv.org/abs/2108.13559"],
        )

    def _compute(self, predictions, references, sampling_rate=None):
        scores = score_each(lambda estimate, reference, rate: usdr(estimate, reference), 0, predictions, references)
        return {"usdr": mean_score(scores)}
