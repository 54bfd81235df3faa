"""Commands of an accelerator run: each with a log and a limit, all of them ended when the run ends."""

import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GRACE_S = 30.0  # for a training whose time is up, to validate and to write its checkpoint and model


class StageError(RuntimeError):
    """A command of a stage failed, or had no time."""


class Processes:
    """What runs, in sessions of their own.

    Args:
        log_dir: gets `NAME.log` of every command.
    """

    def __init__(self, log_dir: Path):
        self.log_dir = log_dir
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.RLock()
        self.ending = threading.Event()

    def start(self, name: str, command: list[str], num_threads: int = 1) -> subprocess.Popen:
        """Start a command; raises StageError once all were ended."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONPATH": os.pathsep.join(paths)}
        with self._lock, open(self.log_dir / f"{name}.log", "a", encoding="utf-8") as log:
            if self.ending.is_set():
                raise StageError("interrupted")
            print(f"$ {shlex.join(command)}", file=log, flush=True)
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            self._running.add(process)
        return process

    def run(
        self, name: str, command: list[str], limit_s: float, num_threads: int = 1, done: tuple[int, ...] = (0,)
    ) -> None:
        """Run a command to its end.

        Args:
            done: exit codes after which there is what was wanted.

        Raises:
            StageError: it failed, or took longer than `limit_s`.
        """
        process = self.start(name, command, num_threads)
        try:
            process.wait(max(limit_s, 1.0))
        except subprocess.TimeoutExpired:
            self.end(process)
            if process.returncode not in done:  # a training may have closed in time
                raise StageError(f"stopped after {limit_s:.0f} s") from None
        self._forget(process)
        if self.ending.is_set():
            raise StageError("interrupted")
        if process.returncode not in done:
            lines = (self.log_dir / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
            raise StageError(f"failed with {process.returncode}: {lines[-1] if lines else 'without a word'}")

    def end(self, process: subprocess.Popen, grace_s: float = GRACE_S) -> None:
        """Ask it to end, then make it and what it started end."""
        for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
            if process.poll() is None:
                signal_group(process, number)
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        self._forget(process)

    def end_together(self, processes: list[subprocess.Popen], grace_s: float) -> None:
        """`end` of all at a time: of many, one after the other would take a minute."""
        with ThreadPoolExecutor(max(len(processes), 1)) as pool:
            list(pool.map(partial(self.end, grace_s=grace_s), processes))

    def _forget(self, process: subprocess.Popen) -> None:
        with self._lock:
            self._running.discard(process)

    def end_all(self) -> None:
        """End what runs, all at a time and asked once: a second signal would cost a training its checkpoint."""
        with self._lock:
            self.ending.set()
            running = [process for process in self._running if process.poll() is None]
        for process in running:
            signal_group(process, signal.SIGTERM)
        until = time.monotonic() + GRACE_S
        for process in running:
            try:
                process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                signal_group(process, signal.SIGKILL)


def signal_group(process: subprocess.Popen, number: int) -> None:
    """A signal to a process and what it started, unless another thread has seen its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
