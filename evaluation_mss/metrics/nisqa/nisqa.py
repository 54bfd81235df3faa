"""NISQA v2.0 as an `evaluate` module."""

import evaluate

from evaluation_mss.metric_inputs import mean_score, score_each, signal_features
from evaluation_mss.perceptual_metrics import nisqa

_DESCRIPTION = """\
NISQA v2.0: overall quality of speech or singing without a reference, as a mean opinion score from 1 to 5. Computed by
torchmetrics at 48 kHz on the mean of the channels. The weights (CC BY-NC-SA 4.0, non-commercial) are not included:
without them, compute says where to get them and where they belong. Silence gets a score too: leave it out.
"""

_CITATION = """\
@inproceedings{mittag2021nisqa,
  title = {{NISQA}: A Deep {CNN}-Self-Attention Model for Multidimensional Speech Quality Prediction
    with Crowdsourced Datasets},
  author = {Mittag, Gabriel and Naderi, Babak and Chehadi, Assmaa and M{\\"o}ller, Sebastian},
  booktitle = {Interspeech},
  year = {2021}
}
"""

_INPUTS = """\
Args:
    predictions: estimates; a list of paths, or of arrays (T,) or (C, T).
    sampling_rate: of arrays, in hertz (Hz); files know theirs.

Returns:
    nisqa: mean over the predictions.

Example:
    >>> nisqa = evaluate.load("evaluation_mss/metrics/nisqa")
    >>> nisqa.compute(predictions=["vocals.wav"])
"""


class Nisqa(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=signal_features("predictions"),
            reference_urls=["https://github.com/gabrielmittag/NISQA"],
        )

    def _compute(self, predictions, sampling_rate=None):
        return {"nisqa": mean_score(score_each(nisqa, sampling_rate, predictions))}
