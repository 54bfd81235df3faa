"""ViSQOL in audio mode as an `evaluate` module."""

import evaluate

from evaluation_mss.metric_inputs import mean_score, score_each, signal_features
from evaluation_mss.perceptual_metrics import visqol

_DESCRIPTION = """\
ViSQOL v3 in audio mode: how alike an estimate and its reference sound, as a mean opinion score from 1 to 4.73.
Computed by visqol-python at 48 kHz on the mean of the channels. It ignores level and small delays by design. Score
segments of about 10 s; silent references are not defined and left out.
"""

_CITATION = """\
@inproceedings{chinen2020visqol,
  title = {{ViSQOL} v3: An Open Source Production Ready Objective Speech and Audio Metric},
  author = {Chinen, Michael and Lim, Felicia S. C. and Skoglund, Jan and Gureev, Nikita and
    O'Gorman, Feargus and Hines, Andrew},
  booktitle = {International Conference on Quality of Multimedia Experience (QoMEX)},
  year = {2020}
}
"""

_INPUTS = """\
Args:
    predictions: estimates; a list of paths, or of arrays (T,) or (C, T).
    references: true signals, as predictions.
    sampling_rate: of arrays, in hertz (Hz); files know theirs.

Returns:
    visqol: mean over the pairs whose reference is not silent; NaN if none is.

Example:
    >>> visqol = evaluate.load("evaluation_mss/metrics/visqol")
    >>> visqol.compute(predictions=["estimate.wav"], references=["vocals.wav"])
"""


class Visqol(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=signal_features("predictions", "references"),
            reference_urls=["https://github.com/google/visqol", "https://pypi.org/project/visqol-python"],
        )

    def _compute(self, predictions, references, sampling_rate=None):
        return {"visqol": mean_score(score_each(visqol, sampling_rate, predictions, references))}
