"""The SDR of museval as an `evaluate` module."""

from evaluation_mss import evaluate_modules


class Csdr(evaluate_modules.MetricModule):
    metric = "csdr"
