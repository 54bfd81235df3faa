"""Multi-resolution log-mel distance as an `evaluate` module."""

from evaluation_mss import evaluate_modules


class MelDistance(evaluate_modules.MetricModule):
    metric = "mel_distance"
