"""Each way in which a song is separated: what it makes of an input, judged."""

import contextlib
import hashlib
import io
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from processing_mss import AudioReader, AudioReadError
from tests.robustness.elsewhere import Elsewhere
from tests.robustness.inputs import ANY, EXACT, REFUSED, Input, Made
from tests.robustness.judging import outcome_of_failure, outcome_of_result, strange_lines, text_problem


class Case:
    """One input on one way: in an empty folder, with what is written there and to stderr in view.

    Args:
        folder: for `given/` (the input), `out/` (the command line's stems) and `tmp/` (temporary files).
    """

    def __init__(self, odd: Input, folder: Path, elsewhere: Elsewhere):
        self.odd, self.folder = odd, folder
        self.given, self.out, self.tmp = folder / "given", folder / "out", folder / "tmp"
        for path in (self.given, self.tmp):
            path.mkdir(parents=True)
        self.made: Made | None = odd.make(self.given, elsewhere)

    def run(self, way: str, separators: dict) -> dict:
        """Outcome, what is to be said about it, and the time it took; None where it cannot be tried here."""
        if self.made is None:
            return {"outcome": None}
        before, begin = contents_of(self.given), time.monotonic()
        with captured() as streams, temporary_files_in(self.tmp):
            try:
                outcome, note = separators[way](self)
            except SystemExit as stop:
                outcome, note = "TRACEBACK", f"exit code {stop.code}"
            except Exception as error:
                outcome, note = "TRACEBACK", f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - begin
        stderr = streams["stderr"]
        if way == "command":
            outcome, note = self._judge_messages(outcome, note, stderr)
        name = Path(str(self.made.source)).name
        if strange := strange_lines(stderr, name):
            outcome, note = "TRACEBACK", f"on stderr: {strange[:3]}; {note}"
        elif way != "space" and outcome in ("right", "unseen", "warned"):
            if (outcome == "warned") != ("is damaged" in stderr):
                outcome, note = "WRONG", f"{outcome}, but stderr is {stderr[-300:]!r}; {note}"
        if left := self._left_over(outcome, before):
            outcome, note = "LEFTOVER", f"{left}; {note}"
        return {"outcome": outcome, "note": note, "seconds": round(seconds, 2)}

    def _judge_messages(self, outcome: str, note: str, stderr: str) -> tuple[str, str]:
        """The command line says in one line, and in its own words, why it refuses a song."""
        errors = [line for line in re.split(r"[\r\n]+", stderr) if line.startswith("mss-lm separate: error: ")]
        for error in errors:
            if problem := text_problem(error):
                return "TRACEBACK", problem
        if outcome == "refused" and not errors:
            return "TRACEBACK", f"exit code 1 without a message: {stderr[-300:]!r}"
        if any("a mistake of this program" in error for error in errors):
            return "TRACEBACK", f"{errors}"
        return outcome, f"{note} {errors[-1] if errors else ''}".strip()

    def _left_over(self, outcome: str, before: dict[str, str]) -> str | None:
        """Files that nobody asked for, and songs that are others now."""
        after = contents_of(self.given)
        changed = [name for name in before if after.get(name) != before[name]]
        if changed:
            return f"changed: {changed}"
        if left := [path.name for path in self.tmp.iterdir()]:
            return f"temporary files: {left}"
        found = sorted(set(after) - set(before)) + sorted(contents_of(self.out))
        if outcome == "refused" and found:
            return f"after a failure: {found[:5]}"
        if unfinished := [name for name in found if ".separating-" in name]:
            return f"unfinished files: {unfinished[:5]}"
        return None

    def judge(self, stems: list[np.ndarray], rate: int, steps: float = 0.0) -> tuple[str, str]:
        losses = []
        if isinstance(self.made.source, (str, Path)) and not str(self.made.source).startswith("http"):
            with contextlib.suppress(AudioReadError), AudioReader(str(self.made.source)) as reader:
                losses = [(loss.start_s, loss.duration_s, loss.at_end) for loss in reader.losses]
        total = np.sum([stem.astype(np.float64) for stem in stems], axis=0)
        return outcome_of_result(self.odd.expected, self.made, total, rate, losses, steps)


def command_line(model_dir: str):
    """`mss-lm separate`, in this process."""
    from commands_mss.main import main

    def separate(case: Case) -> tuple[str, str]:
        made = case.made
        options = ["--model", model_dir, "--bits", "32f"]
        if "--output_dir" not in made.arguments:
            options += ["--output_dir", str(case.out)]
        code = main(["separate", *options, *(made.arguments or ["--", str(made.source)])])
        if code not in (0, 1):
            return "TRACEBACK", f"exit code {code}"
        written = sorted(path for path in case.out.rglob("*") if path.is_file())
        if made.arguments:
            return _folders(case, code, [path.relative_to(case.out).as_posix() for path in written])
        if code:
            return outcome_of_failure(case.odd.expected, "see stderr")
        if len(written) != 4:
            return "WRONG", f"wrote {written}"
        read = [soundfile.read(os.fsencode(path), always_2d=True) for path in written]
        return case.judge([samples.T for samples, _ in read], read[0][1])

    return separate


def _folders(case: Case, code: int, written: list[str]) -> tuple[str, str]:
    """Where several songs were given, it is looked at what was written, not into it."""
    expected, files = case.odd.expected, case.made.files
    if files is not None and written != sorted(files):
        return "WRONG", f"wrote {written}"
    if (code != 0 and expected == EXACT) or (code == 0 and expected == REFUSED):
        return "WRONG", f"exit code {code}"
    if code == 0:
        return "right", ""
    # Some songs may have been separated, which is no failure's rest.
    return ("unseen" if expected == ANY else "refused"), f"exit code {code}"


def by_path(pipe):
    return lambda case: _by_pipeline(pipe, case, _path(case.made.source))


def by_bytes(pipe):
    return lambda case: _by_pipeline(pipe, case, case.made.source.read_bytes())


def by_array(pipe):
    return lambda case: _by_pipeline(pipe, case, case.made.source)


def _path(source):
    return str(source) if isinstance(source, Path) else source


def _by_pipeline(pipe, case: Case, source) -> tuple[str, str]:
    try:
        stems = pipe(source)
    except ValueError as error:
        return outcome_of_failure(case.odd.expected, str(error))
    return case.judge([stem["audio"] for stem in stems], stems[0]["sampling_rate"])


@contextlib.contextmanager
def captured() -> Iterator[dict[str, str]]:
    """What is written meanwhile, also by libraries in C: both descriptors, and Python's streams and loggers on them."""
    streams, saved = {}, {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        text = {
            name: open(number, "w", closefd=False, encoding="utf-8", errors=errors) for name, number, errors in STREAMS
        }
        handler = logging.StreamHandler(text["stderr"])
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(text["stdout"]), contextlib.redirect_stderr(text["stderr"]):
                yield streams
        finally:
            logging.getLogger().removeHandler(handler)
            for name, file in (("stdout", stdout), ("stderr", stderr)):
                text[name].close()
                file.seek(0)
                streams[name] = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="").read()
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)


STREAMS = [("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")]  # as Python opens them


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def contents_of(folder: Path) -> dict[str, str]:
    """Names below a folder -> digests; what is no file has its kind."""
    found = {}
    for path in folder.rglob("*") if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = "link"
        elif not path.is_file():
            found[name] = "folder" if path.is_dir() else "special"
        elif path.stat().st_size > 2**28:
            found[name] = "large"
        else:
            found[name] = hashlib.sha1(path.read_bytes()).hexdigest()
    return found
