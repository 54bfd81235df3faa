"""Parts to sound: General MIDI soundfonts."""

import functools
import os
from pathlib import Path

import numpy as np

from .render_score import Part

SAMPLING_RATE = 48000  # of everything that is rendered, in hertz (Hz)


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
