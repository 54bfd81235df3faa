"""What goes wrong in a way that callers handle."""


class MetricUnavailable(RuntimeError):  # noqa: N818 (it says what the metric is, and an evaluation goes on without it)
    """A metric cannot run here: its package or its weights are missing. The message says what to do about it."""


def missing_package(metric: str, package: str, error: ImportError) -> MetricUnavailable:
    return MetricUnavailable(
        f"`{metric}` needs the package {package} ({error}): pip install '{package}', or pip install 'mss-lm[eval]' for "
        "all metrics."
    )
