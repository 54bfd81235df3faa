"""DNSMOS P.835 as an `evaluate` module."""

from evaluation_mss import evaluate_modules


class Dnsmos(evaluate_modules.MetricModule):
    metric = "dnsmos"
