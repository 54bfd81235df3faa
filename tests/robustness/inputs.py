"""All odd inputs: what they are called, how each is made, and what is expected of it.

They are made by name, anew in each process: nothing but this code is kept of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.robustness.elsewhere import Elsewhere
from tests.robustness.sounds import Encoded

EXACT = "exact"  # it is separated without a word, and the stems add up to it
DAMAGED = "damaged"  # the same; or it is refused, or what is lost is told and all the rest is right
UNDETECTABLE = "undetectable"  # the same; or it is wrong where it was damaged and nowhere else
ANY = "any"  # it may be another valid file by now: no more than an orderly end can be asked for
REFUSED = "refused"  # one sentence, and nothing is written

WAYS = ("command", "path", "bytes", "array", "space")
FILE_WAYS = ("command", "path", "bytes", "space")
PLACE_WAYS = ("command", "path")  # what is more than the bytes of a file


@dataclass(frozen=True)
class Made:
    """An input that is there now.

    Args:
        source: what is given: a path, a name, or what the pipeline takes.
        reference, rate, lossless: what it sounds like and how exactly that is known; None if that does not matter.
        exact_end: whether a missing end is told to the last sample, and not from a tenth of a second on.
        arguments: of the command line, instead of `source`.
        files: what the command line writes into its output folder then; None if it writes elsewhere.
    """

    source: object = None
    reference: np.ndarray | None = None
    rate: int = 0
    lossless: bool = True
    exact_end: bool = True
    arguments: tuple[str, ...] = ()
    files: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class Input:
    """Args:
    kind: row of the table.
    make: writes into an empty folder of its own.
    fast: whether it is part of the fast subset.
    """

    name: str
    kind: str
    expected: str
    ways: tuple[str, ...]
    make: Callable[[Path, Elsewhere], Made]
    fast: bool = False


def file_input(
    name: str,
    kind: str,
    expected: str,
    file_name: str,
    content: Callable[[], bytes] | bytes,
    sounds_like: Callable[[], Encoded] | None = None,
    fast: bool = False,
    ways: tuple[str, ...] = FILE_WAYS,
    exact_end: bool = True,
) -> Input:
    """An input that is one file."""
    make = partial(_make_file, file_name, content, sounds_like, exact_end)
    return Input(name, kind, expected, ways, make, fast)


def _make_file(file_name, content, sounds_like, exact_end, folder: Path, elsewhere: Elsewhere) -> Made:
    path = folder / file_name
    path.write_bytes(content() if callable(content) else content)
    if sounds_like is None:
        return Made(path)
    like = sounds_like()
    return Made(path, like.reference, like.rate, like.lossless, exact_end and like.lossless)


def all_inputs() -> dict[str, Input]:
    """By name, in the order of the table."""
    from tests.robustness import arrays, containers, folders, headers, no_audio, places, references, whole

    inputs: Iterator[Input] = (
        odd
        for module in (containers, whole, headers, references, no_audio, places, arrays, folders)
        for odd in module.inputs()
    )
    named = {}
    for odd in inputs:
        assert odd.name not in named, odd.name
        named[odd.name] = odd
    return named
