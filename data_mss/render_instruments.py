"""Parts to sound: General MIDI soundfonts, and drums from one-shot samples of a folder."""

import functools
import os
import re
from pathlib import Path

import numpy as np
import torch

from processing_mss import read_audio
from processing_mss.resampling_mss import resample

from .render_score import Note, Part

SAMPLING_RATE = 48000  # of everything that is rendered, in hertz (Hz)

# One-shot samples by name, most telling word first; a sample that fits nothing is left out.
ONE_SHOT_NAMES = {
    "kick": r"kick|^bd[_-]|bass_?drum|drum_bass",
    "open_hat": r"open_?hat|hat_?open|^oh[_-]|cymbal_open",
    "hat": r"hat|^hh[_-]|cymbal_(closed|pedal)",
    "snare": r"snare|^sn[_-]|^sd[_-]|rim|clap",
    "tom": r"tom",
    "ride": r"ride|cymbal_soft",
    "crash": r"crash|splash|cymbal",
    "percussion": r"perc|cowbell|shaker|tambourine|conga|bongo",
}
GM_DRUMS = {
    "kick": (35, 36),
    "snare": (37, 38, 39, 40),
    "hat": (42, 44),
    "open_hat": (46,),
    "tom": (41, 43, 45, 47, 48, 50),
    "ride": (51, 53, 59),
    "crash": (49, 52, 55, 57),
}
MAX_ONE_SHOT_SECONDS = 4.0


# tinysoundfont 0.3.7, not midirenderer 0.1.3: it keeps the loaded font, reads SF3, and hands out float samples.
# Measured on one core with FluidR3_GM.sf2 and 30 s of a six-track rock song (931 notes): 0.28 s, and 0.29 s track by
# track, after 0.66 s of loading once (3.6 s for the compressed MuseScore_General_Lite.sf3). midirenderer reads the font
# in every call: 0.59 s for the song in one call, and one call a track is needed; it refuses SF3.
class Soundfont:
    """A loaded soundfont. A part sounds the same however many were played before it.

    Args:
        path: an SF2 or SF3 file.

    Raises:
        ValueError: the file is missing or no soundfont.
        ImportError: tinysoundfont is not installed.
    """

    def __init__(self, path: str | os.PathLike):
        try:
            import tinysoundfont
        except ImportError as error:
            raise ImportError(
                "Rendering needs tinysoundfont: pip install --no-deps tinysoundfont (its PyAudio is for playing aloud)."
            ) from error
        if not Path(path).is_file():
            raise ValueError(f"There is no soundfont {path}.")
        self._synth = tinysoundfont.Synth(samplerate=SAMPLING_RATE)
        try:
            self._font = self._synth.sfload(os.fspath(path))
        except Exception as error:  # the library has no exception of its own for this
            raise ValueError(f"Cannot load the soundfont {path}: {error}") from error

    def has_preset(self, bank: int, program: int) -> bool:
        """Whether the font has this program (bank 0) or drum kit (bank 128)."""
        try:
            return self._synth.sfpreset_name(self._font, bank, program) is not None
        except RuntimeError:
            return False

    def play(self, part: Part, duration: float) -> np.ndarray:
        """A part as `(2, duration * 48000)` float32; notes still sounding at the end are cut."""
        synth, total = self._synth, round(duration * SAMPLING_RATE)
        bank = 128 if part.is_drum else 0
        program = part.program if self.has_preset(bank, part.program) else 0
        synth.program_select(0, self._font, bank, program, part.is_drum)
        # (sample, 0 for off or 1 for on, pitch, velocity): sorted, so that a repeated note ends before it starts again.
        events = [(round(note.start * SAMPLING_RATE), 1, note.pitch, note.velocity) for note in part.notes]
        events += [(round(note.end * SAMPLING_RATE), 0, note.pitch, 0) for note in part.notes]
        events = [event for event in events if 0 <= event[0] < total]

        samples, position = np.zeros((total, 2), dtype=np.float32), 0
        buffer = memoryview(samples).cast("B")
        for time, is_on, pitch, velocity in [*sorted(events), (total, 0, 0, 0)]:
            if time > position:
                synth.generate_simple(time - position, buffer[position * 8 : time * 8])
                position = time
            if is_on:
                synth.noteon(0, pitch, velocity)
            else:
                synth.noteoff(0, pitch)
        # What still sounds would leak into the next part: after 0.1 s every voice is gone (checked bit by bit).
        synth.sounds_off(0)
        synth.generate_simple(SAMPLING_RATE // 10)
        return np.ascontiguousarray(samples.T)


@functools.lru_cache(maxsize=4)
def load_soundfont(path: str) -> Soundfont:
    """A soundfont, loaded once a process (FluidR3_GM takes about 0.3 GB)."""
    return Soundfont(path)


@functools.lru_cache(maxsize=2)
def load_one_shots(folder: str) -> dict[str, list[np.ndarray]]:
    """Drum samples of a folder (wav, flac) by kind, each `(2, T)` float32 at 48 kHz with a peak of 1.

    Kinds come from file names: kick, snare, hat, tom, ... (see `ONE_SHOT_NAMES`). Loops and samples of more than 4 s
    are left out.

    Raises:
        ValueError: no kick or no snare there.
    """
    kinds: dict[str, list[np.ndarray]] = {kind: [] for kind in ONE_SHOT_NAMES}
    for path in sorted(Path(folder).rglob("*")):
        name = path.stem.lower()
        kind = next((kind for kind, pattern in ONE_SHOT_NAMES.items() if re.search(pattern, name)), None)
        if kind is None or "loop" in name or "roll" in name or path.suffix.lower() not in (".wav", ".flac"):
            continue
        waveform, rate = read_audio(path)
        peak = np.abs(waveform).max()
        if waveform.shape[1] > MAX_ONE_SHOT_SECONDS * rate or peak == 0:
            continue
        waveform = resample(torch.from_numpy(waveform[:2] / peak), rate, SAMPLING_RATE).numpy()
        kinds[kind].append(np.broadcast_to(waveform, (2, waveform.shape[1])))
    if not kinds["kick"] or not kinds["snare"]:
        raise ValueError(f"Need at least a kick and a snare (wav or flac, named so) in the drums folder {folder}.")
    return kinds


def choose_kit(one_shots: dict[str, list[np.ndarray]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One sample of each kind; a kind that the folder lacks is played by its nearest relative, or not at all."""
    relatives = {"open_hat": "crash", "hat": "percussion", "ride": "hat", "crash": "open_hat", "tom": "kick"}
    kit = {kind: samples[rng.integers(len(samples))] for kind, samples in one_shots.items() if samples}
    for kind, relative in relatives.items():
        if kind not in kit and relative in kit:
            kit[kind] = kit[relative]
    return kit


def play_one_shots(notes: list[Note], kit: dict[str, np.ndarray], duration: float) -> np.ndarray:
    """Drum notes (General MIDI keys) with one-shot samples: `(2, duration * 48000)` float32. Toms are tuned by key."""
    output = np.zeros((2, round(duration * SAMPLING_RATE)), dtype=np.float32)
    kind_of = {key: kind for kind, keys in GM_DRUMS.items() for key in keys}
    levels = {"kick": 1.0, "snare": 0.9, "tom": 0.8, "crash": 0.5, "ride": 0.35, "percussion": 0.4}
    toms = {}
    if "tom" in kit:
        length = kit["tom"].shape[1]
        for step, key in enumerate(GM_DRUMS["tom"]):
            # Lower toms by reading the sample more slowly; two semitones from one to the next.
            positions = np.arange(0, length, 2 ** ((step - 2) / 6))
            toms[key] = np.stack([np.interp(positions, np.arange(length), channel) for channel in kit["tom"]])
    for note in notes:
        kind = kind_of.get(note.pitch, "percussion")
        sample = toms.get(note.pitch) if kind == "tom" else kit.get(kind)
        start = round(note.start * SAMPLING_RATE)
        if sample is None or not 0 <= start < output.shape[1]:
            continue
        sample = sample[:, : output.shape[1] - start]
        output[:, start : start + sample.shape[1]] += levels.get(kind, 0.4) * (note.velocity / 127) ** 1.5 * sample
    return output
