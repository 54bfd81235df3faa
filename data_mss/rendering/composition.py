"""Composed songs: key, tempo, metre, form, harmony, and who plays what in which section."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .patterns import (
    BASS_STYLES,
    CRASHES,
    DRUM_STYLES,
    SNARES,
    TIMEKEEPERS,
    Chord,
    DrumStyle,
    Event,
    arpeggio_bar,
    bass_bar,
    comping_bar,
    drum_bar,
    drum_fill,
    make_motif,
    pad_bar,
    phrase_pitches,
    phrase_rhythm,
    riff_bar,
)
from .score import DRUM_KITS, FAMILIES, VOICE_SPAN, Arrangement, Note, Part

KEYS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
# Degrees of the scale (0 is the tonic), one or two bars each.
PROGRESSIONS = {
    "major": (
        (0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 4, 3), (0, 3, 0, 4), (1, 4, 0, 0), (0, 2, 3, 4), (0, 5, 1, 4),
        (3, 0, 4, 5), (0, 4, 3, 0), (0, 0, 3, 3), (3, 4, 2, 5),
    ),
    "minor": (
        (0, 5, 2, 6), (0, 6, 5, 6), (0, 3, 4, 0), (0, 5, 3, 4), (0, 2, 6, 5), (5, 6, 0, 0), (0, 3, 6, 2), (0, 0, 5, 6),
        (0, 4, 5, 3), (0, 6, 0, 5),
    ),
    "dorian": ((0, 3, 0, 3), (0, 6, 3, 0), (0, 1, 2, 3), (0, 0, 3, 3)),
    "mixolydian": ((0, 6, 3, 0), (0, 0, 6, 3), (0, 4, 6, 3), (0, 3, 6, 0)),
}  # fmt: skip
STEPS_PER_BAR = {"4/4": 16, "3/4": 12, "6/8": 12}

FORM = ("intro", "verse", "verse", "chorus", "verse", "chorus", "bridge", "chorus", "solo", "verse", "chorus", "chorus")
# Chance that a layer plays in a kind of section.
LAYERS = {
    "intro": {"drums": 0.5, "bass": 0.5, "pad": 0.7, "comping": 0.6, "arpeggio": 0.6, "riff": 0.6, "lead": 0.4},
    "verse": {"drums": 0.95, "bass": 0.95, "pad": 0.5, "comping": 0.7, "arpeggio": 0.4, "riff": 0.35, "voice": 0.97},
    "chorus": {"drums": 1, "bass": 1, "pad": 0.8, "comping": 0.85, "arpeggio": 0.5, "riff": 0.5, "voice": 1},
    "bridge": {"drums": 0.6, "bass": 0.7, "pad": 0.8, "comping": 0.5, "arpeggio": 0.6, "lead": 0.6, "voice": 0.4},
    "solo": {"drums": 1, "bass": 1, "pad": 0.6, "comping": 0.8, "arpeggio": 0.3, "riff": 0.4, "lead": 1},
}
ROLES = {  # families of programs that suit a layer
    "pad": ("ensemble", "synth_pad", "synth_pad", "organ"),
    "comping": ("piano", "piano", "guitar", "guitar", "organ", "mallet"),
    "arpeggio": ("piano", "mallet", "guitar", "synth_lead", "strings", "ethnic"),
    "riff": ("guitar", "guitar", "brass", "synth_lead", "piano", "strings"),
    "lead": ("reed", "synth_lead", "brass", "strings", "guitar", "pipe", "ethnic", "piano"),
}
OPTIONAL = {"drums": 0.96, "bass": 0.96, "pad": 0.6, "comping": 0.8, "arpeggio": 0.5, "riff": 0.45}  # chance in a song


class Section(NamedTuple):
    """A section: its kind, first bar, bars, chords (one a bar), and the layers that play."""

    kind: str
    first: int
    bars: int
    chords: list[Chord]
    layers: frozenset[str]


@dataclass
class Grid:
    """Steps to seconds: a sixteenth's length, how late every other eighth comes (swing, 0-0.33), and human timing."""

    step_seconds: float
    steps_per_bar: int
    swing: float
    looseness: float
    rng: np.random.Generator

    def notes(self, bar: int, events: list[Event], loudness: float) -> list[Note]:
        """Events of a bar as notes; velocities are scaled by `loudness` and vary a little."""
        if not events:
            return []
        steps, lengths, pitches, velocities = np.array(events, dtype=np.float64).T
        swung = steps + np.where(steps % 4 == 2, 4 * self.swing / 2, 0)
        starts = (bar * self.steps_per_bar + swung) * self.step_seconds
        starts = np.maximum(starts + self.rng.normal(0, self.looseness, len(starts)), 0)
        ends = starts + np.maximum(lengths * self.step_seconds, 0.04)
        velocities = np.clip(velocities * loudness + self.rng.normal(0, 5, len(starts)), 12, 127)
        return [
            Note(float(start), float(end), int(pitch), int(velocity))
            for start, end, pitch, velocity in zip(starts, ends, pitches, velocities)
        ]


def compose(duration: float, voice_low: int, rng: np.random.Generator) -> Arrangement:
    """A song of `duration` seconds for a singer whose lowest pitch is `voice_low` (MIDI)."""
    metre = str(rng.choice(["4/4", "3/4", "6/8"], p=[0.74, 0.1, 0.16]))
    tempo = float(rng.uniform(70, 175) if metre == "4/4" else rng.uniform(90, 170))
    mode = str(rng.choice(list(SCALES), p=[0.45, 0.35, 0.1, 0.1]))
    tonic = int(rng.integers(12))
    scale = tuple((tonic + interval) % 12 for interval in SCALES[mode])
    steps = STEPS_PER_BAR[metre]
    grid = Grid(
        step_seconds=15 / tempo,
        steps_per_bar=steps,
        swing=float(rng.choice([0, 0, 0, rng.uniform(0.1, 0.33)])) if metre == "4/4" else 0.0,
        looseness=float(rng.choice([0.0, 0.003, 0.008])),
        rng=rng,
    )
    bars = max(1, int((duration - 0.5) / (steps * grid.step_seconds)))
    sections = make_form(bars, mode, scale, rng)

    style = DRUM_STYLES[metre][str(rng.choice(list(DRUM_STYLES[metre])))]
    parts = [
        make_part(role, sections, grid, style, mode, rng)
        for role in ("drums", "bass", "pad", "comping", "arpeggio", "riff")
        if any(role in section.layers for section in sections)
    ]
    melody = sing(sections, "voice", grid, scale, voice_low, rng)
    solo = sing(sections, "lead", grid, scale, int(rng.integers(58, 70)), rng)
    program = pick_program("lead", rng)
    if solo:
        parts.append(Part("solo", "other", program, solo))
    bar_seconds = steps * grid.step_seconds
    return Arrangement(
        source="composed",
        duration=duration,
        tempo=tempo,
        metre=metre,
        key=f"{KEYS[tonic]} {mode}",
        scale=scale,
        parts=[part for part in parts if part.notes],
        melody=melody,
        sung=[
            (section.first * bar_seconds, (section.first + section.bars) * bar_seconds)
            for section in sections
            if "voice" in section.layers
        ],
        lead=Part("lead", "other", program, [note._replace(pitch=note.pitch + 12) for note in melody]),
        bars=[bar * bar_seconds for bar in range(bars + 1)],
    )


def make_form(bars: int, mode: str, scale: tuple[int, ...], rng: np.random.Generator) -> list[Section]:
    """Sections of 4 or 8 bars that fill a song; the same kind keeps its chords and layers when it comes back."""
    present = {layer for layer, chance in OPTIONAL.items() if rng.random() < chance} | {"lead", "voice"}
    if not present & {"pad", "comping", "arpeggio", "riff"}:
        present.add("comping")
    present = sorted(present)  # a set's order differs from process to process, and with it the song would
    # A short song has no room for an introduction.
    form = FORM if bars >= 16 else ("verse", "chorus", "chorus") if bars >= 6 else ("chorus",)
    if bars >= 16 and rng.random() < 0.3:
        form = form[1:]
    length = 8 if bars >= 48 or (bars >= 24 and rng.random() < 0.3) else 4
    chords, layers, sections, first = {}, {}, [], 0
    while first < bars:
        kind = form[len(sections) % len(form)]
        if kind not in chords:
            chords[kind] = make_chords(mode, scale, rng)
            layers[kind] = {layer for layer in present if rng.random() < LAYERS[kind].get(layer, 0)}
            chordal = [layer for layer in present if layer in ("pad", "comping", "arpeggio", "riff")]
            # Now and then drums and bass are alone with the singer, but nobody is alone.
            if not layers[kind] & set(chordal) and (len(layers[kind]) < 3 or rng.random() < 0.8):
                layers[kind].add(str(rng.choice(chordal)))
        playing = layers[kind]
        count = min(length, bars - first)
        progression = [chords[kind][bar % len(chords[kind])] for bar in range(count)]
        sections.append(Section(kind, first, count, progression, frozenset(playing)))
        first += count
    return sections


def make_chords(mode: str, scale: tuple[int, ...], rng: np.random.Generator) -> list[Chord]:
    """A progression, one chord a bar: triads of the scale, some with sevenths, slow songs hold each for two bars."""
    degrees = PROGRESSIONS[mode][rng.integers(len(PROGRESSIONS[mode]))]
    sizes = 4 if rng.random() < 0.3 else 3
    held = 2 if rng.random() < 0.15 else 1
    chords = [Chord(tuple(scale[(degree + 2 * tone) % 7] for tone in range(sizes))) for degree in degrees]
    return [chord for chord in chords for _ in range(held)]


def pick_program(role: str, rng: np.random.Generator) -> int:
    """A General MIDI program: a family that suits the role, then any of its programs."""
    return int(rng.choice(FAMILIES[str(rng.choice(ROLES[role]))]))


def make_part(
    role: str, sections: list[Section], grid: Grid, style: DrumStyle, mode: str, rng: np.random.Generator
) -> Part:
    """A part through the whole song; its pattern is drawn once, and once more for choruses."""
    if role == "drums":
        return make_drums(sections, grid, style, rng)
    program = int(rng.choice(FAMILIES["bass"])) if role == "bass" else pick_program(role, rng)
    steps = grid.steps_per_bar
    centre = float(rng.uniform(55, 67))
    rhythms = [sorted({0, *rng.choice(np.arange(2, steps, 2), 3).tolist()}) for _ in range(2)]
    styles = [str(style) for style in rng.choice(BASS_STYLES, 2)]
    orders = [str(order) for order in rng.choice(["up", "down", "both"], 2)]
    stride, octaves = int(rng.choice([1, 2, 2, 2])), int(rng.integers(1, 3))
    motifs = [make_motif(steps, mode in ("minor", "dorian"), rng) for _ in range(2)]
    low, power = float(rng.choice([40, 45, 52])), program in (29, 30)

    notes = []
    for section in sections:
        if role not in section.layers:
            continue
        variant = int(section.kind == "chorus")
        for bar, chord in enumerate(section.chords):
            if role == "bass":
                following = section.chords[(bar + 1) % section.bars]
                events = bass_bar(styles[variant], chord, following, steps, style.kick, rng)
            elif role == "pad":
                events = pad_bar(chord, steps, centre)
            elif role == "comping":
                events = comping_bar(chord, tuple(rhythms[variant]), steps, centre)
            elif role == "arpeggio":
                events = arpeggio_bar(chord, orders[variant], stride, steps, centre, octaves)
            elif role == "riff":
                events = riff_bar(chord, motifs[(variant + bar // 2) % 2], low, power)
            else:
                raise ValueError(f"`role` must be drums, bass, pad, comping, arpeggio or riff, got {role!r}.")
            notes += grid.notes(section.first + bar, events, 1.0 if variant else 0.9)
    return Part(role, "bass" if role == "bass" else "other", program, notes)


def make_drums(sections: list[Section], grid: Grid, style: DrumStyle, rng: np.random.Generator) -> Part:
    """Drums in a style: another timekeeper in choruses, fills where sections end, a crash where one begins."""
    timekeepers = [int(pitch) for pitch in rng.choice(TIMEKEEPERS, 2)]
    snare, busy = int(rng.choice(SNARES, p=[0.5, 0.3, 0.1, 0.1])), float(rng.uniform(0, 0.5))
    crash = int(rng.choice(CRASHES))
    notes = []
    for section in sections:
        if "drums" not in section.layers:
            continue
        variant = int(section.kind in ("chorus", "solo"))
        for bar in range(section.bars):
            events = drum_bar(style, timekeepers[variant], snare, busy, rng)
            last = bar == section.bars - 1
            if (last and rng.random() < 0.8) or (bar % 4 == 3 and rng.random() < 0.3):
                events = drum_fill(events, grid.steps_per_bar, snare, rng)
            if bar == 0 and (variant or rng.random() < 0.4):
                events.append((0, 4, crash, 105))
            notes += grid.notes(section.first + bar, events, 1.0 if variant else 0.9)
    return Part("drums", "drums", int(rng.choice(DRUM_KITS)), notes, is_drum=True)


def sing(
    sections: list[Section], layer: str, grid: Grid, scale: tuple[int, ...], low: int, rng: np.random.Generator
) -> list[Note]:
    """A melody over the sections in which `layer` ("voice" or "lead") is heard: phrases of two bars that come back.

    Notes do not overlap and lie within `low ... low + 14`.
    """
    pitches = [pitch for pitch in range(low, low + VOICE_SPAN + 1) if pitch % 12 in scale]
    steps = grid.steps_per_bar
    rhythms: dict[str, list] = {}
    melody = []
    for section in sections:
        if layer not in section.layers:
            continue
        lines = rhythms.setdefault(section.kind, [phrase_rhythm(steps, rng) for _ in range(2)])
        for bar in range(0, section.bars, 2):
            rhythm = lines[(bar // 2) % 2] if rng.random() < 0.75 else phrase_rhythm(steps, rng)
            left = (section.bars - bar) * steps
            rhythm = [(onset, min(length, left - onset)) for onset, length in rhythm if onset < left]
            start = len(pitches) // 2 + (1 if section.kind == "chorus" else -1)
            line = phrase_pitches(rhythm, section.chords[bar : bar + 2], steps, pitches, start, rng)
            for (onset, length), pitch in zip(rhythm, line):
                begin = ((section.first + bar) * steps + onset) * grid.step_seconds
                end = begin + length * grid.step_seconds * 0.97
                melody.append(Note(float(begin), float(end), pitch, int(rng.integers(80, 115))))
    return melody
