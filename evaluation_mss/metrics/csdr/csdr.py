"""The SDR of museval as an `evaluate` module."""

import evaluate

from evaluation_mss.metric_inputs import mean_score, read_signals, signal_features
from evaluation_mss.signal_metrics import csdr

_DESCRIPTION = """\
SDR of museval (BSS Eval v4, "images") in windows of 1 s, median over windows, in dB: the figure of SiSEC's and
MUSDB18's tables. All stems of a song belong together: a window in which one of them is digital silence counts for none.
"""

_CITATION = """\
@inproceedings{stoter2018sisec,
  title = {The 2018 Signal Separation Evaluation Campaign},
  author = {St{\\"o}ter, Fabian-Robert and Liutkus, Antoine and Ito, Nobutaka},
  booktitle = {Latent Variable Analysis and Signal Separation (LVA/ICA)},
  year = {2018}
}
"""

_INPUTS = """\
Args:
    predictions: songs; of each, a list of the stems' estimates: paths, or an array (S, C, T).
    references: true stems, as predictions and in the same order.
    sampling_rate: of arrays, in hertz (Hz); files know theirs.

Returns:
    csdr: mean over songs and stems.
    csdr_stems: for each stem, mean over songs; NaN where no song has a score.

Example:
    >>> csdr = evaluate.load("evaluation_mss/metrics/csdr")
    >>> csdr.compute(predictions=[["my_vocals.wav", "my_drums.wav"]], references=[["vocals.wav", "drums.wav"]])
"""


class Csdr(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=signal_features("predictions", "references", stems=True),
            reference_urls=["https://github.com/sigsep/sigsep-mus-eval"],
        )

    def _compute(self, predictions, references, sampling_rate=None):
        songs = []
        for estimates, stems in zip(predictions, references):
            signals, rate = read_signals([*estimates, *stems], sampling_rate)
            songs.append(csdr(signals[: len(estimates)], signals[len(estimates) :], rate))
        per_stem = [mean_score(list(scores)) for scores in zip(*songs)]
        return {"csdr": mean_score([score for scores in songs for score in scores]), "csdr_stems": per_stem}
