"""logWMSE as an `evaluate` module."""

from evaluation_mss import evaluate_modules


class LogWmse(evaluate_modules.MetricModule):
    metric = "log_wmse"
