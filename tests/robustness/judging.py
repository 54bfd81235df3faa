"""What became of an input: outcomes, and the checks that lead to them."""

import re

import numpy as np

from tests.robustness.inputs import ANY, DAMAGED, EXACT, REFUSED, UNDETECTABLE, Made

GOOD = ("right", "warned", "refused", "unseen")
BAD = ("TRACEBACK", "HANG", "CRASH", "WRONG", "LEFTOVER", "LEAK")

MARGIN_S = 0.12  # around a loss, where a lossy decoder is not yet itself again: up to nine frames of an mp3
SPAN_S = 0.35  # that damage of 1000 bytes may be wrong for
END_S = 0.1  # of lossy formats, see `END_S` of the reader
PADDING = 2304  # samples of two frames, which encoders put around a song, and headers say to leave out
ALLOWED_LINES = [
    r"Loading weights: .*",
    r"mss-lm separate: (error|warning): .*",
    r".* is damaged: lost are .*\.",
    r"No `sampling_rate` given with the array: \d+ Hz is assumed\.",
    r".*: +(\d+%\|.*\||)\s*\d+(/\d+ |step) ?\[.*step.*\]",  # the progress bar
]
ALLOWED = re.compile("|".join(ALLOWED_LINES))


def strange_lines(stderr: str, name: str) -> list[str]:
    """What of it are neither our messages, one line each, nor progress bars.

    Args:
        name: of the file. Where it holds a new line, the progress bar does too.
    """
    lines = re.split(r"[\r\n]+", stderr.replace(name, name.replace("\n", " ").replace("\r", " ")))
    lines = [re.sub(r"\x1b\[[A-K]", "", line).strip() for line in lines]
    return [line for line in lines if line and not ALLOWED.fullmatch(line)]


def text_problem(text: str) -> str | None:
    """Whether a message is none for people: Python's or the system's words in it, or several lines."""
    for mark in ("Errno", "<_io.", " object at 0x", "Traceback"):
        if mark in text:
            return f"{mark} in the message: {text}"
    if "\n" in text.strip():
        return f"several lines: {text!r}"
    return None if text.strip() else "an empty message"


def outcome_of_failure(expected: str, message: str) -> tuple[str, str]:
    """Of an input that was refused with a message; and what is wrong with that."""
    if problem := text_problem(message):
        return "TRACEBACK", problem
    if expected == EXACT:
        return "WRONG", f"refused, though whole: {message}"
    return "refused", message


def outcome_of_result(
    expected: str, made: Made, total: np.ndarray, rate: int, losses: list[tuple[float, float, bool]], steps: float = 0.0
) -> tuple[str, str]:
    """Of stems that add up to `total`, with what was told to be lost; and what is wrong with them.

    Args:
        losses: start and duration in seconds, and whether it is at the end.
        steps: half of the steps in which samples were written.
    """
    if not np.isfinite(total).all():
        return "WRONG", "NaN or infinity in the result"
    if expected == REFUSED:
        return "WRONG", f"separated, {total.shape} at {rate} Hz"
    told = "warned" if losses else "unseen"
    if made.reference is None:
        return told, ""
    if rate != made.rate or len(total) != len(made.reference):
        problem = f"{len(total)} channels at {rate} Hz"
        return (told, problem) if expected == ANY else ("WRONG", problem)
    length = min(total.shape[1], made.reference.shape[1])
    missing = made.reference.shape[1] - total.shape[1]
    wrong = wrong_samples(total[:, :length], made.reference[:, :length], rate, made.lossless, steps)
    if not wrong.any() and missing == 0:
        if losses and expected == EXACT:
            return "WRONG", "a warning, though all is right"
        return ("warned" if losses else "right"), ""
    problem = f"{wrong.sum()} samples are wrong, {missing} are missing"
    if expected == ANY:
        return told, problem
    if expected == UNDETECTABLE and (losses or is_local(made, total, rate, steps)):
        return told, problem
    untold = wrong & ~told_samples(length, rate, losses, 0 if made.lossless else MARGIN_S)
    if not made.exact_end and 0 < missing <= END_S * rate + PADDING:
        untold[-round(END_S * rate) :] = False  # the beginning of what is missing may be wrong
    end_told = missing <= 0 or any(at_end for _, _, at_end in losses)
    if expected == DAMAGED and not untold.any() and missing >= (0 if made.lossless else -PADDING):
        if losses and end_told:
            return "warned", ""
        if not losses and not made.exact_end and missing <= END_S * rate + PADDING:
            return "unseen", problem
    return "WRONG", f"{problem}, {untold.sum()} of them untold; told: {losses}"


def wrong_samples(total, reference, rate: int, lossless: bool, steps: float = 0.0) -> np.ndarray:
    """`(samples,)` bool: where they differ; of lossy formats, in which blocks of 10 ms more than they may."""
    difference = np.abs(total.astype(np.float64) - reference).max(axis=0)
    if lossless:
        return difference > 2e-6 * (1 + np.abs(reference).max(initial=0)) + steps
    block = rate // 100
    power = np.pad(difference**2, (0, -len(difference) % block)).reshape(-1, block).mean(axis=1)
    level = 0.2 * np.sqrt((np.asarray(reference, dtype=np.float64) ** 2).mean()) + 1e-4 + steps
    return np.repeat(power > level**2, block)[: len(difference)]


def told_samples(length: int, rate: int, losses: list[tuple[float, float, bool]], margin_s: float) -> np.ndarray:
    told = np.zeros(length, dtype=bool)
    for start, duration, at_end in losses:
        first = max(0, round((start - margin_s) * rate))
        told[first : None if at_end else round((start + duration + margin_s) * rate)] = True
    return told


def is_local(made: Made, total: np.ndarray, rate: int, steps: float) -> bool:
    """Whether it is right up to some place, and right from there, or from a little later, to the end.

    What follows may stand earlier or later then: where frames have no times, nothing tells that one is missing. Or it
    ends there: where nothing tells the length, nothing tells that it is cut off.
    """
    length = min(total.shape[1], made.reference.shape[1])
    if length == 0:
        return True
    forwards = wrong_samples(total[:, :length], made.reference[:, :length], rate, made.lossless, steps)
    backwards = wrong_samples(total[:, -length:], made.reference[:, -length:], rate, made.lossless, steps)
    first = int(np.argmax(forwards)) if forwards.any() else length
    last = int(np.flatnonzero(backwards)[-1]) + 1 if backwards.any() else 0  # from here on it is right
    ends_there = total.shape[1] < made.reference.shape[1] and first > length - SPAN_S * rate
    return ends_there or last - first <= SPAN_S * rate
