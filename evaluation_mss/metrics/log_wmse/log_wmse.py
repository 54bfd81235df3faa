"""logWMSE as an `evaluate` module."""

import evaluate

from evaluation_mss.metric_inputs import mean_score, score_each, signal_features
from evaluation_mss.signal_metrics import log_wmse

_DESCRIPTION = """\
logWMSE: log of the mean squared error, weighted by the ear's sensitivity and relative to the mixture's level; about the
scale of an SDR, and defined for silent references. Computed by log-wmse-audio-quality.
"""

_CITATION = """\
@misc{logwmse,
  title = {{logWMSE}: an audio quality metric with support for digital silence targets},
  author = {{Nomono}},
  howpublished = {\\url{https://github.com/nomonosound/log-wmse-audio-quality}},
  year = {2024}
}
"""

_INPUTS = """\
Args:
    predictions: estimates; a list of paths, or of arrays (T,) or (C, T).
    references: true signals, as predictions.
    mixtures: what the estimates were made from, as predictions.
    sampling_rate: of arrays, in hertz (Hz); files know theirs.

Returns:
    log_wmse: mean over the rows.

Example:
    >>> log_wmse = evaluate.load("evaluation_mss/metrics/log_wmse")
    >>> log_wmse.compute(predictions=["estimate.wav"], references=["vocals.wav"], mixtures=["song.wav"])
"""


class LogWmse(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=signal_features("predictions", "references", "mixtures"),
            reference_urls=["https://github.com/nomonosound/log-wmse-audio-quality"],
        )

    def _compute(self, predictions, references, mixtures, sampling_rate=None):
        return {"log_wmse": mean_score(score_each(log_wmse, sampling_rate, predictions, references, mixtures))}
