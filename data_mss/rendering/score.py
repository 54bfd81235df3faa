"""What is played: notes, parts and arrangements, and the instruments of General MIDI."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

SAMPLING_RATE = 48000  # of everything that is rendered, in hertz (Hz)

# General MIDI programs (0-127) by family, without voices (52-54, 85, 91): in "other" they would contradict "vocals".
FAMILIES = {
    "piano": tuple(range(0, 8)),
    "mallet": tuple(range(8, 16)),
    "organ": tuple(range(16, 24)),
    "guitar": tuple(range(24, 32)),
    "bass": tuple(range(32, 40)),
    "strings": tuple(range(40, 48)),
    "ensemble": (48, 49, 50, 51),
    "brass": tuple(range(56, 64)),
    "reed": tuple(range(64, 72)),
    "pipe": tuple(range(72, 80)),
    "synth_lead": (80, 81, 82, 83, 84, 86, 87),
    "synth_pad": (88, 89, 90, 92, 93, 94, 95),
    "ethnic": tuple(range(104, 112)),
}
DRUM_KITS = (0, 0, 8, 16, 24, 25, 32, 40)  # standard, room, power, electronic, 808, jazz, brush
GM_DRUMS = {  # General MIDI keys; every other key is percussion
    "kick": (35, 36),
    "rim": (37,),
    "snare": (38, 40),
    "clap": (39,),
    "hat": (42, 44),
    "open_hat": (46,),
    "tom": (41, 43, 45, 47, 48, 50),  # from the lowest
    "ride": (51, 59),
    "ride_bell": (53,),
    "crash": (49, 52, 55, 57),
}
VOICE_SPAN = 14  # semitones that a singer covers without strain


class Note(NamedTuple):
    """A note: start and end in seconds, MIDI pitch (60 is middle C), velocity 1-127."""

    start: float
    end: float
    pitch: int
    velocity: int


@dataclass
class Part:
    """Notes for one instrument: its role, its stem, and its General MIDI program (for drums a kit's)."""

    name: str
    stem: str
    program: int
    notes: list[Note]
    is_drum: bool = False


@dataclass
class Arrangement:
    """A whole song before it sounds.

    Args:
        source: "composed", or the MIDI file's name.
        duration: in seconds.
        tempo: quarter notes per minute.
        metre: "4/4", "3/4", "6/8", or what a MIDI file says ("" if it says none).
        key: in words.
        scale: pitch classes (0-11, 0 is C) that harmonies keep to.
        parts: the instruments.
        melody: for the singer, one note at a time, in a singer's range; empty if nobody sings.
        sung: (start, end) in seconds where singing belongs.
        lead: an instrument that plays the melody where nobody sings it.
        bars: where bars begin, in seconds.
    """

    source: str
    duration: float
    tempo: float
    metre: str
    key: str
    scale: tuple[int, ...]
    parts: list[Part]
    melody: list[Note]
    sung: list[tuple[float, float]] = field(default_factory=list)
    lead: Part | None = None
    bars: list[float] = field(default_factory=list)


def harmonize(melody: list[Note], scale: tuple[int, ...], steps: int) -> list[Note]:
    """The melody `steps` degrees of the scale higher (or lower, if negative)."""
    ladder = [pitch for pitch in range(20, 108) if pitch % 12 in scale]
    nearest = np.searchsorted(ladder, [note.pitch for note in melody])
    return [note._replace(pitch=ladder[int(index) + steps]) for note, index in zip(melody, nearest)]
