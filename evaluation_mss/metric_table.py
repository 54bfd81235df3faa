"""The metrics of an evaluation: what each computes, from what, and what its `evaluate` module says of it.

Metrics are plain functions in a table (`METRICS`), so that others, and tests, can put their own there.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from .perceptual_metrics import dnsmos, nisqa, nisqa_weights, visqol
from .signal_metrics import csdr, log_wmse, mel_distance, si_sdr, usdr


@dataclass(frozen=True)
class Sounds:
    """What a metric may look at: `(C, T)` each, for joint metrics `(S, C, T)` but for the mixture; rate in hertz."""

    estimate: torch.Tensor
    reference: torch.Tensor
    mixture: torch.Tensor
    sampling_rate: int

    def cut(self, span: slice) -> "Sounds":
        estimate, reference, mixture = (sound[..., span] for sound in (self.estimate, self.reference, self.mixture))
        return Sounds(estimate, reference, mixture, self.sampling_rate)


@dataclass(frozen=True)
class Metric:
    """One metric of the table.

    Args:
        scores: names of the numbers it gives.
        compute: `Sounds` -> these numbers in order; a joint metric gives one number for each stem.
        segmented: it hears segments of 10 s in which the reference is audible, and the mean over them counts. With a
            codec it has a second form, `*_codec`. Otherwise it gets the whole excerpt.
        joint: it needs all stems at once.
        stems: those it is made for; all if not given.
        package: the installed package that computes it, whose version tables state.
        inputs: of its `evaluate` module (`evaluate_modules.MetricModule`): estimates, and what they are compared with.
        needs_rate: whether the sampling rate matters.
        description, citation, urls: of that module; the citation is BibTeX.
    """

    scores: tuple[str, ...]
    compute: Callable[[Sounds], Iterable[float]]
    segmented: bool = False
    joint: bool = False
    stems: tuple[str, ...] | None = None
    package: str = "mss-lm"
    inputs: tuple[str, ...] = ("predictions", "references")
    needs_rate: bool = True
    description: str = ""
    citation: str = ""
    urls: tuple[str, ...] = ()


METRICS = {
    "visqol": Metric(
        scores=("visqol",),
        compute=lambda sounds: [visqol(sounds.estimate, sounds.reference, sounds.sampling_rate)],
        segmented=True,
        package="visqol-python",
        description="""\
ViSQOL v3 in audio mode: how alike an estimate and its reference sound, as a mean opinion score from 1 to 4.73.
Computed by visqol-python at 48 kHz on the mean of the channels. It ignores level and small delays by design. Score
segments of about 10 s; silent references are not defined and left out.
""",
        citation="""\
@inproceedings{chinen2020visqol,
  title = {{ViSQOL} v3: An Open Source Production Ready Objective Speech and Audio Metric},
  author = {Chinen, Michael and Lim, Felicia S. C. and Skoglund, Jan and Gureev, Nikita and
    O'Gorman, Feargus and Hines, Andrew},
  booktitle = {International Conference on Quality of Multimedia Experience (QoMEX)},
  year = {2020}
}
""",
        urls=("https://github.com/google/visqol", "https://pypi.org/project/visqol-python"),
    ),
    "dnsmos": Metric(
        scores=("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl"),
        compute=lambda sounds: dnsmos(sounds.estimate, sounds.sampling_rate).values(),
        segmented=True,
        stems=("vocals",),
        package="speechmos",
        inputs=("predictions",),
        description="""\
DNSMOS P.835: quality of speech or singing without a reference, as mean opinion scores from 1 to 5 of the signal, the
background, and overall. Computed by speechmos at 16 kHz on the mean of the channels. Silence gets a score too:
leave it out.
""",
        citation="""\
@inproceedings{reddy2022dnsmos,
  title = {{DNSMOS} {P.835}: A Non-Intrusive Perceptual Objective Speech Quality Metric to Evaluate Noise Suppressors},
  author = {Reddy, Chandan K. A. and Gopal, Vishak and Cutler, Ross},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year = {2022}
}
""",
        urls=("https://github.com/microsoft/DNS-Challenge/tree/master/DNSMOS", "https://pypi.org/project/speechmos"),
    ),
    "nisqa": Metric(
        scores=("nisqa",),
        compute=lambda sounds: [nisqa(sounds.estimate, sounds.sampling_rate)],
        segmented=True,
        stems=("vocals",),
        package="torchmetrics",
        inputs=("predictions",),
        description="""\
NISQA v2.0: overall quality of speech or singing without a reference, as a mean opinion score from 1 to 5. Computed by
torchmetrics at 48 kHz on the mean of the channels. The weights (CC BY-NC-SA 4.0, non-commercial) are not included:
without them, compute says where to get them and where they belong. Silence gets a score too: leave it out.
""",
        citation="""\
@inproceedings{mittag2021nisqa,
  title = {{NISQA}: A Deep {CNN}-Self-Attention Model for Multidimensional Speech Quality Prediction
    with Crowdsourced Datasets},
  author = {Mittag, Gabriel and Naderi, Babak and Chehadi, Assmaa and M{\\"o}ller, Sebastian},
  booktitle = {Interspeech},
  year = {2021}
}
""",
        urls=("https://github.com/gabrielmittag/NISQA",),
    ),
    "usdr": Metric(
        scores=("usdr",),
        compute=lambda sounds: [usdr(sounds.estimate, sounds.reference)],
        needs_rate=False,
        description="""\
Signal-to-distortion ratio over the whole signal in dB, over all channels together, as in the Music Demixing Challenge
2021 ("utterance SDR"). Equal to torchmetrics' signal_noise_ratio. Silent references are not defined and left out.
""",
        citation="""\
@article{mitsufuji2022mdx,
  title = {Music Demixing Challenge 2021},
  author = {Mitsufuji, Yuki and Fabbro, Giorgio and Uhlich, Stefan and St{\\"o}ter, Fabian-Robert and
    D{\\'e}fossez, Alexandre and others},
  journal = {Frontiers in Signal Processing},
  year = {2022}
}
""",
        urls=("https://arxiv.org/abs/2108.13559",),
    ),
    "si_sdr": Metric(
        scores=("si_sdr",),
        compute=lambda sounds: [si_sdr(sounds.estimate, sounds.reference)],
        needs_rate=False,
        description="""\
Scale-invariant signal-to-distortion ratio in dB, over all channels together, means not subtracted. Equal to that of
torchmetrics. Silent references are not defined and left out.
""",
        citation="""\
@inproceedings{leroux2019sdr,
  title = {{SDR} -- Half-Baked or Well Done?},
  author = {Le Roux, Jonathan and Wisdom, Scott and Erdogan, Hakan and Hershey, John R.},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year = {2019}
}
""",
        urls=("https://arxiv.org/abs/1811.02508",),
    ),
    "csdr": Metric(
        scores=("csdr",),
        compute=lambda sounds: csdr(sounds.estimate, sounds.reference, sounds.sampling_rate),
        joint=True,
        description="""\
SDR of museval (BSS Eval v4, "images") in windows of 1 s, median over windows, in dB: the figure of SiSEC's and
MUSDB18's tables. All stems of a song belong together: a window in which one of them is digital silence counts for none.
""",
        citation="""\
@inproceedings{stoter2018sisec,
  title = {The 2018 Signal Separation Evaluation Campaign},
  author = {St{\\"o}ter, Fabian-Robert and Liutkus, Antoine and Ito, Nobutaka},
  booktitle = {Latent Variable Analysis and Signal Separation (LVA/ICA)},
  year = {2018}
}
""",
        urls=("https://github.com/sigsep/sigsep-mus-eval",),
    ),
    "log_wmse": Metric(
        scores=("log_wmse",),
        compute=lambda sounds: [log_wmse(sounds.estimate, sounds.reference, sounds.mixture, sounds.sampling_rate)],
        package="log-wmse-audio-quality",
        inputs=("predictions", "references", "mixtures"),
        description="""\
logWMSE: log of the mean squared error, weighted by the ear's sensitivity and relative to the mixture's level; about the
scale of an SDR, and defined for silent references. Computed by log-wmse-audio-quality.
""",
        citation="""\
@misc{logwmse,
  title = {{logWMSE}: an audio quality metric with support for digital silence targets},
  author = {{Nomono}},
  howpublished = {\\url{https://github.com/nomonosound/log-wmse-audio-quality}},
  year = {2024}
}
""",
        urls=("https://github.com/nomonosound/log-wmse-audio-quality",),
    ),
    "mel_distance": Metric(
        scores=("mel_distance",),
        compute=lambda sounds: [mel_distance(sounds.estimate, sounds.reference, sounds.sampling_rate)],
        description="""\
Mean absolute difference of log-mel spectrograms in dB, over FFTs of 4096 to 256 samples, of the mean of the channels.
It ignores phases: the distance for what a generative codec does. Lower is better.
""",
        citation="""\
@misc{mss_lm,
  title = {mss-lm: an open implementation of generative music source separation},
  note = {evaluation\\_mss.signal\\_metrics.mel\\_distance},
  year = {2026}
}
""",
        urls=("https://arxiv.org/abs/2604.09371",),
    ),
}


def metric_versions() -> dict[str, str]:
    """By metric, name and version of the package that computes it ("visqol-python 3.8.0"); only what is installed.

    Tables name it, since scores of two versions may not be comparable. NISQA also states the hash of its weights, the
    user's own file, once it is there.
    """
    versions = {}
    for name, metric in METRICS.items():
        try:
            versions[name] = f"{metric.package} {version(metric.package)}"
        except PackageNotFoundError:
            if metric.package == "mss-lm":  # run from its folder, not installed
                versions[name] = metric.package
    try:
        weights = nisqa_weights()
    except ImportError:  # torchmetrics is missing, or so old that it has no NISQA
        versions.pop("nisqa", None)
        return versions
    if "nisqa" in versions and weights.is_file():
        versions["nisqa"] += f" (weights {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]})"
    return versions
