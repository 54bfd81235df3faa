"""Folders of songs, and output folders in awkward places: for the command line only.

`expected` is EXACT where all songs are separated, REFUSED where nothing is, and ANY where some are.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.robustness.elsewhere import Elsewhere
from tests.robustness.inputs import ANY, EXACT, REFUSED, Input, Made
from tests.robustness.sounds import encoded

STEMS = ("vocals", "drums", "bass", "other")
# By these a stem would be called as the song.
SAME = "{in}/a/vocals.wav --output_dir {in}/a --filename {stem}.{ext}"
OVER = " --filename {stem}.{ext} --overwrite --output_dir {in}"
# Name, expected, files, arguments, and tracks whose stems are written into {out}: None where they go elsewhere.
CASES = [
    ("an empty folder", REFUSED, [], "{in}", []),
    ("a folder of text", REFUSED, ["notes.txt"], "{in}", []),
    ("a nested folder", EXACT, ["a/b/song.wav", "a/song.wav", "song.wav"], "{in}", ["a/b/song", "a/song", "song"]),
    ("a folder with a folder called .wav", EXACT, ["x.wav/song.wav"], "{in}", ["x.wav/song"]),
    ("a folder with one bad song", ANY, ["bad.txt.wav", "song.wav"], "{in}", ["song"]),
    ("a folder with a song of three dots", ANY, ["...wav", "song.wav"], "{in}", ["song"]),
    ("a folder with hidden songs", EXACT, [".a/song.wav", ".b.wav", "song.wav"], "{in}", ["song"]),
    ("a folder of hidden songs", REFUSED, [".a/song.wav", ".b.wav"], "{in}", []),
    ("a folder with upper-case suffixes", EXACT, ["song.WAV"], "{in}", ["song"]),
    ("a folder with a link loop", EXACT, ["a/song.wav", "a/loop -> .."], "{in}", ["a/song"]),
    ("a folder with a broken link", ANY, ["song.wav", "gone.wav -> nothing"], "{in}", ["song"]),
    ("a folder with a fifo", ANY, ["song.wav", "fifo.wav"], "{in}", ["song"]),
    ("a folder with a link to a folder", EXACT, ["a/song.wav", "b -> a"], "{in}", ["a/song"]),
    ("song.mp3 beside song.wav", ANY, ["song.mp3", "song.wav"], "{in}", ["song"]),
    ("song.mp3 and song.wav apart", EXACT, ["song.mp3", "song.wav"], "{in}/song.wav", ["song"]),
    ("the same names in two folders", ANY, ["a/song.wav", "b/song.wav"], "{in}/a {in}/b", ["song"]),
    ("a song twice", EXACT, ["song.wav"], "{in}/song.wav {in}/../in/song.wav", ["song"]),
    ("a song and its folder", EXACT, ["song.wav"], "{in}/song.wav {in}", ["song"]),
    ("a folder twice", EXACT, ["song.wav"], "{in} {in}/.", ["song"]),
    ("a song and a missing one", ANY, ["song.wav"], "{in}/song.wav {in}/none.wav", ["song"]),
    ("output inside", EXACT, ["song.wav"], "{in} --output_dir {in}/stems", None),
    ("output the same", EXACT, ["song.wav"], "{in} --output_dir {in}", None),
    ("output around", EXACT, ["a/song.wav"], "{in}/a --output_dir {in}", None),
    ("output is a file", REFUSED, ["song.wav", "x.txt"], "{in}/song.wav --output_dir {in}/x.txt", []),
    ("output below a file", REFUSED, ["song.wav", "x.txt"], "{in}/song.wav --output_dir {in}/x.txt/y", []),
    ("output is the song", REFUSED, ["song.wav"], "{in}/song.wav --output_dir {in}/song.wav", []),
    ("output is a broken link", REFUSED, ["song.wav", "x -> gone"], "{in}/song.wav --output_dir {in}/x", []),
    ("output in /dev/null", REFUSED, ["song.wav"], "{in}/song.wav --output_dir /dev/null/x", []),
    ("a file in the way", REFUSED, ["song", "song.wav"], "{in}/song.wav --output_dir {in}", []),
    ("a stem in the way", REFUSED, ["song/vocals.wav", "song.wav"], "{in}/song.wav --output_dir {in}", []),
    ("a folder in the way", REFUSED, ["a/vocals.wav/x", "a.wav"], "{in}/a.wav --output_dir {in} --overwrite", []),
    ("a stem called as the song", REFUSED, ["a/vocals.wav"], SAME, []),
    ("a stem called as the song, overwrite", REFUSED, ["a/vocals.wav"], SAME + " --overwrite", []),
    ("a stem called as a link, overwrite", REFUSED, ["a.wav", "bass.wav -> a.wav"], "{in}/a.wav" + OVER, []),
    ("a stem called as a hard link, overwrite", REFUSED, ["a.wav", "bass.wav = a.wav"], "{in}/a.wav" + OVER, []),
    ("a stem called as another song, overwrite", REFUSED, ["a.wav", "bass.wav"], "{in}/a.wav {in}/bass.wav" + OVER, []),
    ("a link to the song's folder, overwrite", REFUSED, ["bass.wav", "b -> ."], "{in}/b/bass.wav" + OVER, []),
    ("a linked output folder, overwrite", REFUSED, ["bass.wav", "b -> ."], "{in}/bass.wav" + OVER + "/b", []),
    ("a pattern that leaves the folder", REFUSED, ["song.wav"], "{in}/song.wav --filename ../{stem}.{ext}", []),
    ("a pattern of a whole path", REFUSED, ["song.wav"], "{in}/song.wav --filename /dev/shm/{stem}.{ext}", []),
    ("a pattern without a stem", REFUSED, ["song.wav"], "{in}/song.wav --filename {track}.{ext}", []),
    ("a pattern with other fields", REFUSED, ["song.wav"], "{in}/song.wav --filename {title}/{stem}.{ext}", []),
    ("a pattern with attributes", REFUSED, ["song.wav"], "{in}/song.wav --filename {stem.real}{stem}", []),
    ("a pattern with a lone brace", REFUSED, ["song.wav"], "{in}/song.wav --filename {stem}{.{ext}", []),
    ("a pattern with 100000 spaces", REFUSED, ["song.wav"], "{in}/song.wav --filename {stem:>100000}.{ext}", []),
    ("a pattern that is empty", REFUSED, ["song.wav"], "{in}/song.wav --filename=", []),
    ("a pattern that ends with a slash", ANY, ["song.wav"], "{in}/song.wav --filename {stem}/", None),
    ("a pattern with a zero", REFUSED, ["song.wav"], "{in}/song.wav --filename {stem}\0.{ext}", []),
    ("a pattern that is too long", REFUSED, ["song.wav"], "{in}/song.wav --filename {stem}" + "x" * 300, []),
    ("a pattern of many folders", REFUSED, ["song.wav"], "{in}/song.wav --filename " + "x/" * 3000 + "{stem}", []),
    ("strict, and cut off", REFUSED, ["cut.wav"], "{in}/cut.wav --strict", []),
]  # fmt: skip


def inputs() -> Iterator[Input]:
    for name, expected, files, arguments, tracks in CASES:
        make = partial(make_tree, files, arguments, tracks)
        fast = "overwrite" in name or name in ("an empty folder", "strict, and cut off")
        yield Input(name, "folders", expected, ("command",), make, fast)


def make_tree(files: list[str], arguments: str, tracks: list[str] | None, folder: Path, elsewhere: Elsewhere) -> Made:
    """A name with an arrow is a link, one with = a hard link; .txt (also before .wav) is text, all else the song."""
    given, out = folder / "in", folder / "out"
    given.mkdir()
    for entry in files:
        name, *target = entry.replace(" = ", " -> ").split(" -> ")
        path = given / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if " -> " in entry:
            path.symlink_to(target[0])
        elif target:
            path.hardlink_to(given / target[0])
        elif name == "fifo.wav":
            os.mkfifo(path)
        else:
            path.write_bytes(content_of(name))
    filled = arguments.replace("{in}", str(given)).replace("{out}", str(out)).split()
    stems = None if tracks is None else tuple(f"{track}/{stem}.wav" for track in tracks for stem in STEMS)
    return Made(arguments=tuple(filled), files=stems)


def content_of(name: str) -> bytes:
    if ".txt" in name:
        return b"words"
    whole = encoded("mp3" if name.endswith(".mp3") else "wav16").content
    return whole[: len(whole) // 2] if name.startswith("cut") else whole
