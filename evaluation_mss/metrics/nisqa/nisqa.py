"""NISQA v2.0 as an `evaluate` module."""

from evaluation_mss import evaluate_modules


class Nisqa(evaluate_modules.MetricModule):
    metric = "nisqa"
