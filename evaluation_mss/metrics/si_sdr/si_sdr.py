"""SI-SDR as an `evaluate` module."""

from evaluation_mss import evaluate_modules


class SiSdr(evaluate_modules.MetricModule):
    metric = "si_sdr"
