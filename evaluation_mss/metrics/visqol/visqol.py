"""ViSQOL in audio mode as an `evaluate` module."""

from evaluation_mss import evaluate_modules


class Visqol(evaluate_modules.MetricModule):
    metric = "visqol"
