"""The SDR of the Music Demixing Challenge as an `evaluate` module."""

from evaluation_mss import evaluate_modules


class Usdr(evaluate_modules.MetricModule):
    metric = "usdr"
