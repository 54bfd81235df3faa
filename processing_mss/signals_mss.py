"""Ctrl-C at the right moment: after a call into a C library, and never inside of it."""

import contextlib
import signal
import threading
from collections.abc import Iterator

# Those that ask a program to end; Windows does not know the last one.
END_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Signals that come inside of the block are answered at its end.

    PyAV and soundfile drop a KeyboardInterrupt that is raised while their C library calls back into Python, and take
    the file to end there, or the disk to be full. PyAV's wheels also drop one while they make an exception of their
    own, as they do at every frame. So none is raised there. Only the main thread ever hears of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    handlers = {number: signal.getsignal(number) for number in END_SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in came:
            handlers[number](number, frame)
