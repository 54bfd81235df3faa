"""What lies in a file's place, and what files are called."""

import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.robustness.elsewhere import Elsewhere
from tests.robustness.inputs import EXACT, PLACE_WAYS, REFUSED, Input, Made
from tests.robustness.sounds import encoded

KIND = "no plain files"
UPLOADED = (*PLACE_WAYS, "space")


def inputs() -> Iterator[Input]:
    for name, make in {
        "fifo": make_fifo,
        "socket": make_socket,
        "empty folder": lambda path: path.mkdir(),
        "broken link": lambda path: path.symlink_to("nothing.wav"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "missing": lambda path: None,
    }.items():
        yield Input(name, KIND, REFUSED, PLACE_WAYS, partial(make_place, make), fast=name in ("fifo", "missing"))
    yield Input("unreadable", KIND, REFUSED, PLACE_WAYS, make_unreadable)
    for name in ("/dev/zero", "/dev/null", "/dev/random", "/proc/self/mem", "/proc/self/status", "/proc/cpuinfo"):
        make = partial(make_name, name)
        yield Input(name, KIND, REFUSED, PLACE_WAYS, make, fast=name == "/dev/zero")
        yield Input(f"link to {name}", KIND, REFUSED, PLACE_WAYS, partial(make_link, name))
    for name in ("", ".", "/", "a\0b.wav", "\ud800.wav", "x" * 300, "x/" * 3000, "song.wav/", "~", "*"):
        title = f"path {name[:20]!r} of {len(name)} letters"
        # A folder is one for the command line; only the wrong ones are tried here.
        ways = ("path",) if name in ("", ".", "/") else PLACE_WAYS
        yield Input(title, KIND, REFUSED, ways, partial(make_name, name))
    yield Input("a gigabyte of nothing", KIND, REFUSED, PLACE_WAYS, make_sparse)
    yield Input("link to a song", KIND, EXACT, PLACE_WAYS, partial(make_linked, os.symlink))
    yield Input("hard link to a song", KIND, EXACT, PLACE_WAYS, partial(make_linked, os.link))
    yield from name_inputs()


def name_inputs() -> Iterator[Input]:
    for name in [
        "two words.wav",
        " begins with a space.wav",
        "ends with a space .wav",
        "ümläut 音楽 🎵 \u202e.wav",
        "e\u0301 apart.wav",
        "a\nnew line.wav",
        "a\ttab and a \x1b[31mcolour.wav",
        "a\rreturn.wav",
        "-dash.wav",
        "--overwrite.wav",
        "..dots..wav",
        "a..b.wav",
        "...wav",
        "..wav",
        ".wav",
        ".hidden.wav",
        "100%.wav",
        "%s%n%d.wav",
        "$HOME `id` $(id).wav",
        'quote\'s "both".wav',
        "back\\slash.wav",
        "{stem}.wav",
        "{track}{0}{.wav",
        "{track.__class__}.wav",
        "[brackets]*?.wav",
        "a;b|c&d<e>.wav",
        "@args.wav",
        "#1.wav",
        "con.wav",
        "con",
        "song",
        "song.",
        "song.WAV",
        "song.Wav",
        "song.mp3",
        "song.unknown",
        "song.wav.wav",
        "song.tar.gz",
        "vocals.wav",
        "x" * 251 + ".wav",
        "ü" * 125 + ".wav",
        "x" * 255,
    ]:
        title = f"file called {name!r}" if len(name) < 50 else f"file called by {len(name)} letters, {name[-5:]}"
        fast = name in ("a\nnew line.wav", "{stem}.wav")
        yield Input(title, "names", EXACT, UPLOADED, partial(make_named, name), fast)
    # Names on disk are bytes; these are no UTF-8.
    make = partial(make_named, "s\udcffng.wav")
    yield Input("file called by bytes that are no UTF-8", "names", EXACT, PLACE_WAYS, make)


def make_named(name: str, folder: Path, elsewhere: Elsewhere) -> Made:
    song = encoded("wav16")
    (folder / name).write_bytes(song.content)
    return Made(folder / name, song.reference, song.rate)


def make_place(make: Callable[[Path], None], folder: Path, elsewhere: Elsewhere) -> Made:
    make(folder / "song.wav")
    return Made(folder / "song.wav")


def make_fifo(path: Path):
    os.mkfifo(path)


def make_socket(path: Path):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may have some 100 letters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_unreadable(folder: Path, elsewhere: Elsewhere) -> Made | None:
    """Root reads everything: nothing can be tried then."""
    if os.geteuid() == 0:
        return None
    made = make_named("song.wav", folder, elsewhere)
    made.source.chmod(0)
    return Made(made.source)


def make_name(name: str, folder: Path, elsewhere: Elsewhere) -> Made:
    return Made(name)


def make_link(target: str, folder: Path, elsewhere: Elsewhere) -> Made:
    (folder / "song.wav").symlink_to(target)
    return Made(folder / "song.wav")


def make_linked(link: Callable, folder: Path, elsewhere: Elsewhere) -> Made:
    song = encoded("wav16")
    (folder / "target").mkdir()
    (folder / "target" / "original.wav").write_bytes(song.content)
    link(folder / "target" / "original.wav", folder / "song.wav")
    return Made(folder / "song.wav", song.reference, song.rate)


def make_sparse(folder: Path, elsewhere: Elsewhere) -> Made:
    with open(folder / "song.wav", "wb") as file:
        file.truncate(2**30)
    return Made(folder / "song.wav")
