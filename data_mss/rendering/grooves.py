"""Drum performances of people (the Groove MIDI Dataset) under songs, bar by bar at the song's tempo."""

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .score import Arrangement, Note, Part

COLUMNS = ("style", "bpm", "beat_type", "time_signature", "midi_filename", "split")  # of info.csv, that are used
# The dataset's drum set (Roland TD-11) has keys for the edges and rims of its pads; here they are General MIDI's.
GENERAL_MIDI = {22: 42, 26: 46, 50: 48, 47: 45, 58: 43, 55: 49, 52: 57, 59: 51}
MAX_STRETCH = 1.25  # of a performance's tempo
NEARNESS = 0.08  # of tempos that are preferred, in natural logarithms
EARLY = 0.15  # quarter notes that a hit before the bar line may be early
STRAIGHT = 0.01  # by how much bars may differ in length; songs that change their tempo keep their drums
FILL_CHANCE, LAST_FILL_CHANCE = 0.35, 0.8  # of a fill in each fourth bar, and before the drums pause


class Performance(NamedTuple):
    """A performance: MIDI file, style, quarter notes per minute, metre as in "4/4", kind ("beat" or "fill"), split."""

    path: Path
    style: str
    tempo: float
    metre: str
    kind: str
    split: str


@functools.lru_cache(maxsize=2)
def load_grooves(folder: str) -> tuple[Performance, ...]:
    """What a folder's `info.csv` lists.

    Raises:
        ValueError: no `info.csv`, one without the columns or values that are needed, or one that names files that are
            not there.
    """
    table = Path(folder) / "info.csv"
    if not table.is_file():
        raise ValueError(
            f"There is no info.csv in {folder}: grooves are the folder of the Groove MIDI Dataset that has it."
        )
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = sorted(set(COLUMNS) - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(f"{table} lacks the columns {missing}; it has {reader.fieldnames}.")
        performances = tuple(read_performance(table, number, row) for number, row in enumerate(reader, start=2))
    absent = [str(performance.path) for performance in performances if not performance.path.is_file()]
    if absent or not performances:
        raise ValueError(f"{table} names {len(performances)} performances; not there: {absent[:3]} ({len(absent)}).")
    return performances


def read_performance(table: Path, number: int, row: dict[str, str | None]) -> Performance:
    """A line of `info.csv`. Raises ValueError for one that is too short, or whose tempo is no number above 0."""
    values = [row[name] for name in COLUMNS]
    try:
        style, tempo, kind, metre, file, split = values
        if None in values or not float(tempo) > 0:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{table}, line {number}: {COLUMNS} must all be there, and bpm above 0; got {values}."
        ) from None
    return Performance(table.parent / file, style, float(tempo), metre.replace("-", "/"), kind, split)


@functools.lru_cache(maxsize=16)
def read_hits(path: Path) -> np.ndarray:
    """A performance's hits, sorted: rows of quarter notes from the start, General MIDI key, velocity.

    Raises:
        ValueError: the file is broken.
    """
    import mido

    try:
        midi = mido.MidiFile(path)
    except Exception as error:  # mido answers broken files with whatever it stumbled over
        raise ValueError(f"Cannot read {path} as MIDI: {error!r}. Remove it, and its line of info.csv.") from error
    hits = []
    for track in midi.tracks:
        ticks = 0
        for message in track:
            ticks += message.time
            if message.type == "note_on" and message.velocity > 0:
                key = GENERAL_MIDI.get(message.note, message.note)
                hits.append((ticks / midi.ticks_per_beat, key, message.velocity))
    return np.array(sorted(hits)).reshape(-1, 3)


def bars_of(path: Path, quarters: float) -> list[np.ndarray]:
    """The hits of each bar of a performance, counted in quarter notes from its bar line; a last bar of which not even
    the last quarter but one is played is left out, as it would leave a hole when the performance begins again."""
    hits = read_hits(path)
    numbers = ((hits[:, 0] + EARLY) // quarters).astype(int)
    bars = [hits[numbers == number] - [number * quarters, 0, 0] for number in range(numbers.max(initial=-1) + 1)]
    return bars[:-1] if len(bars) > 1 and bars[-1][-1, 0] < quarters - 2 else bars


def choose(
    performances: tuple[Performance, ...], kind: str, metre: str, tempo: float, split: str, rng: np.random.Generator
) -> Performance | None:
    """A performance of a kind, metre and split whose tempo is near, the nearer the likelier; None if there is none."""
    fitting = [
        performance
        for performance in performances
        if (performance.kind, performance.metre, performance.split) == (kind, metre, split)
        and abs(np.log(tempo / performance.tempo)) <= np.log(MAX_STRETCH)
    ]
    if not fitting:
        return None
    distances = np.array([np.log(tempo / performance.tempo) for performance in fitting])
    weights = np.exp(-0.5 * (distances / NEARNESS) ** 2)
    return fitting[int(rng.choice(len(fitting), p=weights / weights.sum()))]


def play_groove(
    arrangement: Arrangement, performances: tuple[Performance, ...], split: str, rng: np.random.Generator
) -> tuple[list[Part], str] | None:
    """The arrangement's parts with its drums played by a person, and whose performance it is.

    Bars without drums stay without; the performance starts at any of its bars, goes on under the song and begins again
    at its end. Human timing and velocities stay, time is stretched to the song's bars. Fills end stretches of bars.

    Returns:
        None where nothing fits: no drums, bars of different lengths, or no performance in this metre, tempo and split.
    """
    drums = [part for part in arrangement.parts if part.is_drum]
    lines = np.array(arrangement.bars)
    if not drums or len(lines) < 3 or "/" not in arrangement.metre:
        return None
    lengths = np.diff(lines)
    beats, unit = (int(number) for number in arrangement.metre.split("/"))
    quarters, bar_seconds = 4 * beats / unit, float(np.median(lengths))
    if np.abs(lengths / bar_seconds - 1).max() > STRAIGHT:
        return None
    tempo = 60 * quarters / bar_seconds
    beat = choose(performances, "beat", arrangement.metre, tempo, split, rng)
    bars = bars_of(beat.path, quarters) if beat is not None else []
    if not bars:
        return None

    # What sounds before the first bar line is left out: it is less than a bar.
    starts = np.array([note.start for part in drums for note in part.notes])
    numbers = np.searchsorted(lines, starts + EARLY * bar_seconds / quarters, side="right") - 1
    active = set(numbers[numbers >= 0].tolist())
    # Where a long performance begins, it need not begin again before the song ends.
    first = int(rng.integers(len(bars) - len(lines) + 1 if len(bars) >= len(lines) else len(bars)))
    notes = []
    for number in sorted(active):
        hits = bars[(first + number) % len(bars)]
        pauses = number + 1 not in active
        if (pauses or number % 4 == 3) and rng.random() < (LAST_FILL_CHANCE if pauses else FILL_CHANCE):
            fill = choose(performances, "fill", arrangement.metre, tempo, split, rng)
            if fill is not None:
                rolling = next((bar for bar in bars_of(fill.path, quarters) if len(bar)), None)
                if rolling is not None:
                    hits = np.concatenate((hits[hits[:, 0] < rolling[0, 0] - EARLY], rolling))
        for quarter, key, velocity in hits:
            start = max(0.0, float(lines[number] + quarter * bar_seconds / quarters))
            if start < arrangement.duration:
                notes.append(Note(start, min(start + 0.1, arrangement.duration), int(key), int(velocity)))
    if not notes:
        return None
    part = Part("drums", "drums", drums[0].program, sorted(notes), is_drum=True)
    others = [part for part in arrangement.parts if not part.is_drum]
    return [part, *others], f"{beat.path.stem} ({beat.style}) of {beat.path.parent.name}"
