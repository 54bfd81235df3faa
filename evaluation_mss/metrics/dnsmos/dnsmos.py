"""DNSMOS P.835 as an `evaluate` module."""

import evaluate

from evaluation_mss.metric_inputs import mean_score, score_each, signal_features
from evaluation_mss.perceptual_metrics import dnsmos

_DESCRIPTION = """\
DNSMOS P.835: quality of speech or singing without a reference, as mean opinion scores from 1 to 5 of the signal, the
background, and overall. Computed by speechmos at 16 kHz on the mean of the channels. Silence gets a score too:
leave it out.
"""

_CITATION = """\
@inproceedings{reddy2022dnsmos,
  title = {{DNSMOS} {P.835}: A Non-Intrusive Perceptual Objective Speech Quality Metric to Evaluate Noise Suppressors},
  author = {Reddy, Chandan K. A. and Gopal, Vishak and Cutler, Ross},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year = {2022}
}
"""

_INPUTS = """\
Args:
    predictions: estimates; a list of paths, or of arrays (T,) or (C, T).
    sampling_rate: of arrays, in hertz (Hz); files know theirs.

Returns:
    dnsmos_sig, dnsmos_bak, dnsmos_ovrl: means over the predictions.

Example:
    >>> dnsmos = evaluate.load("evaluation_mss/metrics/dnsmos")
    >>> dnsmos.compute(predictions=["vocals.wav"])
"""


class Dnsmos(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=signal_features("predictions"),
            reference_urls=[
                "https://github.com/microsoft/DNS-Challenge/tree/master/DNSMOS",
                "https://pypi.org/project/speechmos",
            ],
        )

    def _compute(self, predictions, sampling_rate=None):
        scores = score_each(dnsmos, sampling_rate, predictions)
        return {name: mean_score([score[name] for score in scores]) for name in scores[0]}
