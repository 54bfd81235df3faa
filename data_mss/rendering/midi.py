"""Arrangements from MIDI files: an excerpt, its instruments exchanged, its melody given to the singer."""

import os
import warnings
from pathlib import Path

import numpy as np

from .score import DRUM_KITS, FAMILIES, VOICE_SPAN, Arrangement, Note, Part

MELODY_WORDS = ("melody", "vocal", "vox", "voice", "sing", "lead")


def find_midi(folder: str | os.PathLike) -> list[Path]:
    """MIDI files below a folder, sorted. Raises ValueError if there are none."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".mid", ".midi"))
    if not paths:
        raise ValueError(f"There are no MIDI files in {folder}.")
    return paths


def read_midi(path: Path):
    """A MIDI file that has notes, as `pretty_midi.PrettyMIDI`. Raises ValueError for others."""
    import pretty_midi

    try:
        with warnings.catch_warnings():  # many files have tempo changes in odd tracks; they are read all the same
            warnings.simplefilter("ignore")
            midi = pretty_midi.PrettyMIDI(os.fspath(path))
    except Exception as error:  # mido and pretty_midi answer broken files with whatever they stumbled over
        raise ValueError(f"Cannot read {path.name} as MIDI: {error!r}") from error
    if not any(instrument.notes for instrument in midi.instruments):
        raise ValueError(f"There are no notes in {path.name}.")
    return midi


def read_arrangement(path: Path, duration: float, voice_low: int, rng: np.random.Generator) -> Arrangement:
    """An excerpt of a MIDI file: drums are channel 10, bass programs 32-39, the most lead-like track the melody.

    The excerpt starts anywhere, is transposed by up to three semitones, played up to 10 % slower or faster, and every
    instrument is replaced by one of its family.

    Raises:
        ValueError: no MIDI file, or hardly any notes in the excerpt.
    """
    midi = read_midi(path)
    speed = float(rng.uniform(0.9, 1.1))
    shift = int(rng.integers(-3, 4))
    length = duration * speed
    begin = float(rng.uniform(0, max(0.0, midi.get_end_time() - length)))
    # Start at a note: silence in front would be wasted.
    starts = np.array([note.start for instrument in midi.instruments for note in instrument.notes])
    later = starts[starts >= begin]
    begin = float(later.min() if len(later) else starts.min())

    parts, scores = [], {}
    for number, instrument in enumerate(midi.instruments):
        is_drum, program = instrument.is_drum, int(instrument.program)
        notes = [
            Note(
                (note.start - begin) / speed,
                min((note.end - begin) / speed, duration),
                int(note.pitch if is_drum else np.clip(note.pitch + shift, 0, 127)),
                int(note.velocity),
            )
            for note in instrument.notes
            if begin <= note.start < begin + length and note.velocity > 0
        ]
        if not notes:
            continue
        stem = "drums" if is_drum else "bass" if program in FAMILIES["bass"] else "other"
        if stem == "other":
            scores[len(parts)] = lead_score(instrument.name, program, notes, duration)
        played = int(rng.choice(DRUM_KITS if is_drum else family_of(program)))
        parts.append(Part(f"track{number}", stem, played, sorted(notes), is_drum))
    if len(parts) < 2 or sum(len(part.notes) for part in parts) < duration:
        raise ValueError(f"Hardly anything is played from {begin:.1f} s on in {path.name}.")

    scale = most_played([note.pitch for part in parts if not part.is_drum for note in part.notes])
    best = max(scores, key=scores.get, default=None)
    lead = parts.pop(best) if best is not None and scores[best] > 0 else None
    melody = monophonic(lead.notes, voice_low) if lead is not None else []
    metres = midi.time_signature_changes
    return Arrangement(
        source=path.name,
        duration=duration,
        tempo=float(midi.get_tempo_changes()[1][0] * speed),
        metre=f"{metres[0].numerator}/{metres[0].denominator}" if metres else "",
        key=f"transposed by {shift} semitones",
        scale=scale,
        parts=parts,
        melody=melody,
        sung=phrases(melody),
        lead=lead,
        bars=[float(line) for line in (midi.get_downbeats() - begin) / speed if 0 <= line < duration],
    )


def most_played(pitches: list[int]) -> tuple[int, ...]:
    """The seven pitch classes (0-11, 0 is C) that most notes have, as a file does not say its scale."""
    counts = np.bincount([pitch % 12 for pitch in pitches], minlength=12)
    return tuple(sorted(np.argsort(-counts, kind="stable")[:7].tolist()))


def family_of(program: int) -> tuple[int, ...]:
    """The programs of a program's family; sound effects and voices become synthesizer pads."""
    for programs in FAMILIES.values():
        if program in programs:
            return programs
    return FAMILIES["synth_pad"]


def monophonic(notes: list[Note], low: int) -> list[Note]:
    """The top line, one note at a time, moved by octaves into `low ... low + 14`, as a singer could sing it."""
    line = []
    for note in sorted(notes, key=lambda note: (note.start, -note.pitch)):
        if line and note.start < line[-1].start + 0.06:
            continue
        if line and note.start < line[-1].end:
            line[-1] = line[-1]._replace(end=note.start)
        line.append(note)
    line = [note for note in line if note.end - note.start >= 0.08]
    if not line:
        return []
    # The line moves as a whole, so that its intervals stay; only single notes outside the range jump an octave.
    shift = 12 * round((low + VOICE_SPAN / 2 - np.median([note.pitch for note in line])) / 12)
    folded = []
    for note in line:
        pitch = int(note.pitch + shift)
        while pitch < low:
            pitch += 12
        while pitch > low + VOICE_SPAN:
            pitch -= 12
        folded.append(note._replace(pitch=pitch))
    return folded


def lead_score(name: str, program: int, notes: list[Note], duration: float) -> float:
    """How much a track is like a lead melody: one voice, a singable register, a moderate pace, much of the time."""
    if len(notes) < 4:
        return -1.0
    starts = np.array([note.start for note in notes])
    ends = np.array([note.end for note in notes])
    pitches = np.array([note.pitch for note in notes])
    played = np.sum(ends - starts)
    order = np.argsort(starts)
    overlap = np.sum(np.maximum(0, ends[order][:-1] - starts[order][1:]))
    pace = len(notes) / max(played, 0.1)
    score = 2 * (1 - min(1.0, overlap / max(played, 0.1)))
    score += 1 - min(1.0, abs(np.median(pitches) - 70) / 18)
    score += 1 - min(1.0, abs(np.log2(pace / 2.5)) / 3)
    score += min(1.0, 2 * played / duration) + 0.5 * min(1.0, len(set(pitches.tolist())) / 5)
    score += any(word in name.lower() for word in MELODY_WORDS) * 2
    return score + 0.5 * (program in range(40, 88)) - 0.5 * (program in range(0, 8))


def phrases(melody: list[Note]) -> list[tuple[float, float]]:
    """Where a melody sounds: (start, end) in seconds, notes less than a second apart taken together."""
    spans: list[tuple[float, float]] = []
    for note in melody:
        if spans and note.start - spans[-1][1] < 1:
            spans[-1] = (spans[-1][0], max(spans[-1][1], note.end))
        else:
            spans.append((note.start, note.end))
    return spans
