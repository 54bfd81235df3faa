"""Multi-resolution log-mel distance as an `evaluate` module."""

import evaluate

from evaluation_mss.metric_inputs import mean_score, score_each, signal_features
from evaluation_mss.signal_metrics import mel_distance

_DESCRIPTION = """\
Mean absolute difference of log-mel spectrograms in dB, over FFTs of 4096 to 256 samples, of the mean of the channels.
It ignores phases: the distance for what a generative codec does. Lower is better.
"""

_CITATION = """\
@misc{mss_lm,
  title = {mss-lm: an open implementation of generative music source separation},
  note = {evaluation\\_mss.signal\\_metrics.mel\\_distance},
  year = {2026}
}
"""

_INPUTS = """\
Args:
    predictions: estimates; a list of paths, or of arrays (T,) or (C, T).
    references: true signals, as predictions.
    sampling_rate: of arrays, in hertz (Hz); files know theirs.

Returns:
    mel_distance: mean over the pairs, in dB.

Example:
    >>> mel_distance = evaluate.load("evaluation_mss/metrics/mel_distance")
    >>> mel_distance.compute(predictions=["estimate.wav"], references=["vocals.wav"])
"""


class MelDistance(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=signal_features("predictions", "references"),
            reference_urls=["https://arxiv.org/abs/2604.09371"],
        )

    def _compute(self, predictions, references, sampling_rate=None):
        return {"mel_distance": mean_score(score_each(mel_distance, sampling_rate, predictions, references))}
