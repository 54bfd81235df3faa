"""What computed a score: tables name it, since scores of two versions may not be comparable."""

import hashlib
from importlib.metadata import PackageNotFoundError, version

from .perceptual_metrics import nisqa_weights

PACKAGES = {
    "visqol": "visqol-python",
    "dnsmos": "speechmos",
    "nisqa": "torchmetrics",
    "si_sdr": "torchmetrics",
    "usdr": "torchmetrics",
    "csdr": "mss-lm",
    "log_wmse": "log-wmse-audio-quality",
    "mel_distance": "mss-lm",
}


def metric_versions() -> dict[str, str]:
    """By metric, name and version of the package that computes it ("visqol-python 3.8.0"); only what is installed.

    NISQA also states the hash of its weights, the user's own file, once it is there.
    """
    versions = {}
    for metric, package in PACKAGES.items():
        try:
            versions[metric] = f"{package} {version(package)}"
        except PackageNotFoundError:
            if package == "mss-lm":  # run from its folder, not installed
                versions[metric] = package
    try:
        weights = nisqa_weights()
    except ImportError:  # torchmetrics is missing, or so old that it has no NISQA
        versions.pop("nisqa", None)
        return versions
    if "nisqa" in versions and weights.is_file():
        versions["nisqa"] += f" (weights {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]})"
    return versions
