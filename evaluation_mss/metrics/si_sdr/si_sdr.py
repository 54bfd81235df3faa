"""SI-SDR as an `evaluate` module."""

import evaluate

from evaluation_mss.metric_inputs import mean_score, score_each, signal_features
from evaluation_mss.signal_metrics import si_sdr

_DESCRIPTION = """\
Scale-invariant signal-to-distortion ratio in dB, over all channels together, means not subtracted. Computed by
torchmetrics. Silent references are not defined and left out.
"""

_CITATION = """\
@inproceedings{leroux2019sdr,
  title = {{SDR} -- Half-Baked or Well Done?},
  author = {Le Roux, Jonathan and Wisdom, Scott and Erdogan, Hakan and Hershey, John R.},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year = {2019}
}
"""

_INPUTS = """\
Args:
    predictions: estimates; a list of paths, or of arrays (T,) or (C, T).
    references: true signals, as predictions.
    sampling_rate: of arrays, in hertz (Hz); files know theirs. The score does not depend on it.

Returns:
    si_sdr: mean over the pairs whose reference is not silent, in dB; NaN if none is.

Example:
    >>> si_sdr = evaluate.load("evaluation_mss/metrics/si_sdr")
    >>> si_sdr.compute(predictions=["estimate.wav"], references=["vocals.wav"])
"""


class SiSdr(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=signal_features("predictions", "references"),
            reference_urls=["https://arxiv.org/abs/1811.02508"],
        )

    def _compute(self, predictions, references, sampling_rate=None):
        scores = score_each(lambda estimate, reference, rate: si_sdr(estimate, reference), 0, predictions, references)
        return {"si_sdr": mean_score(scores)}
