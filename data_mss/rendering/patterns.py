"""One bar at a time: drum patterns and fills, bass lines, chords, arpeggios, riffs and melodies.

Time is counted in steps of a sixteenth note from the start of the bar; an event is (step, length in steps, pitch,
velocity). Randomness comes from the generator handed in.
"""

from typing import NamedTuple

import numpy as np

Event = tuple[float, float, int, int]


class Chord(NamedTuple):
    """A chord: pitch classes (0-11) from the root up."""

    tones: tuple[int, ...]


class DrumStyle(NamedTuple):
    """Kick, snare and hi-hat of a bar: X accent, x hit, g ghost note, o open hi-hat, dot nothing."""

    kick: str
    snare: str
    hat: str


DRUM_STYLES = {
    "4/4": {
        "rock": DrumStyle("X.......x.x.....", "....X.......X...", "X.x.X.x.X.x.X.x."),
        "pop": DrumStyle("X.....x.x.......", "....X.......X..g", "X.x.x.x.X.x.x.o."),
        "four_on_the_floor": DrumStyle("X...X...X...X...", "....x.......x...", "..o...o...o...o."),
        "house": DrumStyle("X...X...X...X..x", "....X.......X...", "x.oxx.oxx.oxx.ox"),
        "funk": DrumStyle("X..x..x...x..x..", "....X..g.g..X..g", "XxxxXxxxXxxxXxxo"),
        "half_time": DrumStyle("X.....x...x.....", "........X.......", "X.x.X.x.X.x.X.x."),
        "trap": DrumStyle("X......x..x.....", "........X.......", "x.x.xxx.x.x.xgxg"),
        "breakbeat": DrumStyle("X.x.......x..x..", "....X..g.g..X..g", "X.x.X.x.X.x.X.x."),
        "drum_and_bass": DrumStyle("X.........x.....", "....X..g.g..X...", "x.x.x.x.x.x.x.x."),
        "metal": DrumStyle("X.xxX.xxX.xxX.xx", "....X.......X...", "X...X...X...X..."),
        "punk": DrumStyle("X.x.X.x.X.x.X.x.", "..X...X...X...X.", "X.X.X.X.X.X.X.X."),
        "ballad": DrumStyle("X.......x.......", "....x.......x...", "x...x...x...x..."),
        "motown": DrumStyle("X..x..x.X..x..x.", "X...X...X...X...", "x.x.x.x.x.x.x.x."),
        "one_drop": DrumStyle("........X.......", "........x.....g.", "x.x.x.x.x.x.x.o."),
        "bossa": DrumStyle("X..xx..xX..xx..x", "x..x..x...x..x..", "x.x.x.x.x.x.x.x."),
        "shuffle": DrumStyle("X.......X.x.....", "....X.......X...", "X..xX..xX..xX..x"),
    },
    "3/4": {
        "waltz": DrumStyle("X...........", "....x...x...", "x...x...x..."),
        "rock_waltz": DrumStyle("X.....x.....", "........X...", "X.x.X.x.X.x."),
        "jazz_waltz": DrumStyle("X.....x.....", "....g.....g.", "X...x..xx..."),
    },
    "6/8": {
        "slow_rock": DrumStyle("X.......x...", "......X.....", "X.x.x.X.x.x."),
        "blues": DrumStyle("X...x.....x.", "......X.....", "X.x.x.X.x.x."),
        "march": DrumStyle("X.....X.....", "...g..X..g.g", "X...x.X...x."),
    },
}
ACCENTS = {"X": 112, "x": 90, "o": 95, "g": 45}
KICK, SNARES, OPEN_HAT, TOMS, CRASHES = 36, (38, 40, 37, 39), 46, (50, 48, 47, 45, 43, 41), (49, 57)
TIMEKEEPERS = (42, 42, 42, 51, 59, 44, 54, 70)  # closed hi-hat most often; ride, pedal hi-hat, tambourine, maracas
RHYTHMS = {  # lengths of the notes of a sung bar
    16: (
        (4, 2, 2, 4, 4), (2, 2, 2, 2, 4, 4), (6, 2, 4, 4), (8, 4, 4), (3, 3, 2, 4, 4), (2, 2, 4, 8), (2, 4, 2, 8),
        (4, 4, 4, 4), (6, 6, 4), (3, 3, 3, 3, 4), (2, 1, 1, 2, 2, 8), (12, 4),
    ),
    12: ((4, 4, 4), (6, 2, 4), (2, 2, 2, 2, 4), (8, 4), (6, 6), (4, 2, 4, 2), (2, 2, 2, 6), (12,)),
}  # fmt: skip
BASS_STYLES = ("roots", "eighths", "root_fifth", "octaves", "walking", "syncopated", "arpeggio", "kick")


def drum_bar(style: DrumStyle, timekeeper: int, snare: int, busy: float, rng: np.random.Generator) -> list[Event]:
    """A bar of a style; `busy` (0-1) is the chance that a hit is added or left out, so that no two bars are alike."""
    events = []
    for line, pitch in ((style.kick, KICK), (style.snare, snare), (style.hat, timekeeper)):
        for step, mark in enumerate(line):
            if mark in ACCENTS:
                if pitch == timekeeper and rng.random() < 0.1 * busy:
                    continue
                is_open = mark == "o" and timekeeper in (42, 44)
                velocity = ACCENTS[mark] - (15 if pitch == timekeeper else 0)
                events.append((step, 1, OPEN_HAT if is_open else pitch, velocity))
    if rng.random() < busy:
        events.append((int(rng.integers(1, len(style.kick))), 1, KICK, 80))
    if rng.random() < busy:
        events.append((int(rng.integers(1, len(style.snare))), 1, snare, 45))
    return events


def drum_fill(events: list[Event], steps: int, snare: int, rng: np.random.Generator) -> list[Event]:
    """The bar with its end (a beat to the whole) replaced: toms downwards, a snare roll, kick and snare, or a break."""
    begin = steps - int(rng.choice([4, 4, 8, steps]))
    kind = rng.choice(["toms", "roll", "kicks", "break"], p=[0.45, 0.25, 0.2, 0.1])
    kept = [event for event in events if event[0] < begin or (kind == "break" and event[0] == begin)]
    if kind == "break":
        return kept
    stride = int(rng.choice([1, 2], p=[0.7, 0.3]))
    for position in range(begin, steps, stride):
        progress = (position - begin) / (steps - begin)
        if kind == "toms":
            pitch = TOMS[min(int(progress * len(TOMS)), len(TOMS) - 1)]
        else:
            pitch = snare if kind == "roll" or (position // stride) % 2 else KICK
        kept.append((position, 1, pitch, int(75 + 40 * progress + rng.integers(-8, 9))))
    return kept


def nearest_pitch(pitch_class: int, around: float) -> int:
    """The MIDI pitch of a pitch class that is nearest to `around`."""
    return int(pitch_class + 12 * round((around - pitch_class) / 12))


def bass_bar(
    style: str, chord: Chord, following: Chord, steps: int, kick: str, rng: np.random.Generator
) -> list[Event]:
    """A bar of bass between E1 (28) and about E2: the pattern on the chord, sometimes leading into the next root."""
    root = nearest_pitch(chord.tones[0], 34)
    fifth, third = nearest_pitch(chord.tones[2], root + 5), nearest_pitch(chord.tones[1], root + 4)
    if root < 28:
        root += 12
    beat = 4 if steps == 16 or rng.random() < 0.5 else 6
    if style == "roots":
        events = [(0, steps - 1, root, 100)]
    elif style == "eighths":
        events = [(step, 1.8, root, 100 if step % 4 == 0 else 85) for step in range(0, steps, 2)]
    elif style == "root_fifth":
        events = [(step, beat - 0.5, fifth if (step // beat) % 2 else root, 98) for step in range(0, steps, beat)]
    elif style == "octaves":
        events = [(step, 1.6, root + 12 * ((step // 2) % 2), 98) for step in range(0, steps, 2)]
    elif style == "walking":
        line = (root, third, fifth, root + 12, fifth)
        events = [(step, 3.7, line[(step // 4) % 5], 95) for step in range(0, steps, 4)]
    elif style == "syncopated":
        onsets = [0, 3, 6, 10, 14] if steps == 16 else [0, 3, 8]
        ends = [*onsets[1:], steps]
        events = [(step, (end - step) * 0.8, root, 100 if step == 0 else 88) for step, end in zip(onsets, ends)]
    elif style == "arpeggio":
        line = (root, fifth, root + 12, third + 12)
        events = [(step, 1.9, line[(step // 2) % 4], 92) for step in range(0, steps, 2)]
    elif style == "kick":
        onsets = [step for step, mark in enumerate(kick) if mark != "."] or [0]
        ends = [*onsets[1:], steps]
        events = [(step, max(1, (end - step) * 0.7), root, 100) for step, end in zip(onsets, ends)]
    else:
        raise ValueError(f"`style` must be one of {list(BASS_STYLES)}, got {style!r}.")
    if following != chord and len(events) > 1 and rng.random() < 0.4:
        step, length, _, velocity = events[-1]
        approach = nearest_pitch(following.tones[0], root) + int(rng.choice([-1, 1, 2, -2]))
        events[-1] = (step, length, max(approach, 26), velocity)
    return events


def voicing(chord: Chord, centre: float) -> list[int]:
    """Close position around `centre`; chords that follow each other so move little."""
    return sorted(nearest_pitch(tone, centre) for tone in chord.tones)


def pad_bar(chord: Chord, steps: int, centre: float) -> list[Event]:
    """The chord held for the whole bar."""
    return [(0, steps, pitch, 75) for pitch in voicing(chord, centre)]


def comping_bar(chord: Chord, rhythm: tuple[int, ...], steps: int, centre: float) -> list[Event]:
    """The chord struck at the steps of a rhythm."""
    ends = [*rhythm[1:], steps]
    pitches = voicing(chord, centre)
    return [
        (step, (end - step) * 0.75, pitch, 92 if step == 0 else 78)
        for step, end in zip(rhythm, ends)
        for pitch in pitches
    ]


def arpeggio_bar(chord: Chord, order: str, stride: int, steps: int, centre: float, octaves: int) -> list[Event]:
    """Broken chords upwards, downwards or both, every `stride` steps."""
    pitches = [pitch + 12 * octave for octave in range(octaves) for pitch in voicing(chord, centre)]
    line = {"up": pitches, "down": pitches[::-1], "both": pitches + pitches[-2:0:-1]}[order]
    return [
        (step, stride * 1.1, line[(step // stride) % len(line)], 85 if step % 4 else 95)
        for step in range(0, steps, stride)
    ]


def riff_bar(chord: Chord, motif: list[tuple[int, float, int]], centre: float, power: bool) -> list[Event]:
    """A motif of (step, length, semitones above the root), on the chord's root; `power` adds the fifth."""
    root = nearest_pitch(chord.tones[0], centre)
    events = [(step, length, root + offset, 100 if step == 0 else 88) for step, length, offset in motif]
    return events + [(step, length, pitch + 7, velocity) for step, length, pitch, velocity in events if power]


def make_motif(steps: int, minor: bool, rng: np.random.Generator) -> list[tuple[int, float, int]]:
    """A riff's motif on the pentatonic scale; see `riff_bar`."""
    offsets = (0, 3, 5, 7, 10, 12) if minor else (0, 2, 4, 7, 9, 12)
    onsets = np.flatnonzero(rng.random(steps) < np.where(np.arange(steps) % 2, 0.12, 0.55)).tolist()
    onsets = onsets if onsets and onsets[0] == 0 else [0, *onsets]
    ends = [*onsets[1:], steps]
    return [
        (step, (end - step) * 0.8, 0 if step == 0 else int(rng.choice(offsets, p=[0.35, 0.2, 0.15, 0.15, 0.1, 0.05])))
        for step, end in zip(onsets, ends)
    ]


def phrase_rhythm(steps: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """(onset, length) in steps of a sung phrase of two bars: perhaps a rest first, a long last note, then breath."""
    lengths = [*RHYTHMS[steps][rng.integers(len(RHYTHMS[steps]))], *RHYTHMS[steps][rng.integers(len(RHYTHMS[steps]))]]
    onsets = np.cumsum([0, *lengths[:-1]])
    rest = int(rng.choice([0, 0, 2, 4]))
    breath = int(rng.choice([2, 4, 6, 8]))
    notes = [(float(onset), float(length)) for onset, length in zip(onsets, lengths)]
    notes = [(onset, length) for onset, length in notes if rest <= onset < 2 * steps - breath]
    onset, _ = notes[-1]
    notes[-1] = (onset, min(2 * steps - breath - onset, steps / 2))
    return [(onset, length) for onset, length in notes if length >= 1] or [(0.0, steps / 2)]


def phrase_pitches(
    rhythm: list[tuple[float, float]], chords: list[Chord], steps: int, scale: list[int], start: int,
    rng: np.random.Generator,
) -> list[int]:  # fmt: skip
    """Pitches of a phrase: steps and small leaps in the scale, chord tones on long notes and on strong beats.

    Args:
        rhythm: of `phrase_rhythm`.
        chords: of the phrase's bars.
        steps: of a bar.
        scale: all pitches of the key within the voice's range, upwards.
        start: index into `scale` where the line comes from.
    """
    moves, weights = (-3, -2, -1, 0, 1, 2, 3), (0.05, 0.15, 0.25, 0.12, 0.25, 0.13, 0.05)
    position, pitches = start, []
    for onset, length in rhythm:
        position += int(rng.choice(moves, p=weights))
        # Near an end of the range the line turns back.
        position = min(max(position, int(rng.integers(0, 2))), len(scale) - 1 - int(rng.integers(0, 2)))
        chord = chords[min(int(onset // steps), len(chords) - 1)]
        if length >= 4 or onset % 4 == 0:
            fitting = [index for index, pitch in enumerate(scale) if pitch % 12 in chord.tones]
            if fitting:
                position = min(fitting, key=lambda index: abs(index - position))
        pitches.append(scale[position])
    return pitches
