"""The document with the table of counts."""

from collections import Counter

from tests.robustness.inputs import WAYS
from tests.robustness.judging import BAD, GOOD

BEFORE = """# Odd inputs

What becomes of files that are damaged, lie, refer to others, or are no songs at all; of odd names, folders, layouts
and levels; and of arrays of every type. All of them are generated (`tests/robustness/`), and each goes through every
way that can take it: the command line, the pipeline by path, by bytes and by array, and the Space. `make robustness`
(which is `python -m tests.robustness`) does that and writes this page; a fast subset is part of `make test`.

The model is a tiny one with random weights and masked output. What stems *sound* like does not matter here: they have
to add up to the song, which is known, so that every sample that is lost, moved or wrong is seen.

"""
AFTER = """
What the columns mean:

- *inputs*: how many different ones; *tries*: each on each way.
- *right*: separated without a word, and the stems add up to the song.
- *warned*: something of it is lost. A message tells what and where, and all the rest is right and in its place. Where
  headers only lie, or frames have moved, a warning is all that is asked for.
- *refused*: one sentence says why, the exit code is 1, and no file is written.
- *unseen*: what comes out is not what went in once, and nothing can tell: see below. Of folders: some songs are
  separated, and each of the others has its error.

These are mistakes, and should be 0:

- *TRACEBACK*: an exception that is none of those promised, a message of several lines or with Python's or the system's
  words in it, or anything on stderr that is neither a message of ours nor the progress bar.
- *HANG*: more than 30 s, for songs of one second. *CRASH*: the end of the whole process.
- *WRONG*: samples that are wrong, moved or missing without a word; a warning or an error for a file that is whole; or
  stems of what is no song.
- *LEFTOVER*: files after a failure, temporary ones in any case, or a song that is another one afterwards.
- *LEAK*: a file or an address was opened that was not given, but only named by what was given. All files that the
  inputs name lie in one folder that the kernel watches (inotify), and all addresses are those of one server.

What cannot be detected, and is counted as *unseen*:

- a wrong byte in samples of wav, aiff, caf, Wave64, mov or ALAC, and in frames of mp3, AAC and WMA that still decode:
  there are no checksums. It is asked that only samples near it are wrong;
- a wrong byte in a header without a checksum, which makes it another valid header: another rate, or another length;
- the missing end of an mp3 without a count of its frames, of raw or fragmented AAC, of compressed wav, mka and WMA that
  state no length, and of WMA in several streams: what FFmpeg guesses by the bit rate is not believed;
- the missing end of an ogg that was cut off exactly between two pages, as whole ones need not mark their last page;
- less than 0.1 s at the end of any lossy file, which many encoders leave out themselves; less than 2 ms at that of
  lossless sound in mka, m4a, mov, ogg and WMA, whose times are rounded; and what the last packet of lossless sound in
  mka and caf has less than the others;
- the missing beginning of FLAC and WavPack, if what is left begins with a whole frame: so do files that were cut
  without being decoded;
- a packet of Vorbis that is missing alone (less than 35 ms);
- a second song that is joined to the end of the first.
"""


def document(results: list[dict], seconds: float) -> str:
    inputs = len({result["name"] for result in results})
    ran = f"{inputs} inputs, {len(results)} tries, {seconds / 60:.0f} minutes on two CPU cores.\n\n"
    return BEFORE + ran + table(results) + AFTER


def table(results: list[dict]) -> str:
    """One row for each kind of input, then one for each way, in Markdown."""
    kinds = dict.fromkeys(result["kind"] for result in results)
    rows = [(kind, [result for result in results if result["kind"] == kind]) for kind in kinds]
    rows += [(f"all by {way}", [result for result in results if result["way"] == way]) for way in WAYS]
    rows.append(("all", results))
    header = ["", "inputs", "tries", *GOOD, *BAD]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for title, tries in rows:
        counts = Counter(result["outcome"] for result in tries)
        inputs = len({result["name"] for result in tries})
        lines.append([title, *map(str, (inputs, len(tries), *(counts[outcome] for outcome in (*GOOD, *BAD))))])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines if cells[1] != "0")
