"""Where somebody sings: segments of a song from its separated vocals, by a speech detector or by level."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch

from processing_mss.resampling_mss import resample

ACTIVITIES = ("silero", "energy", "all")
SILERO_RATE = 16000
# Levels as a criterion: frames do not overlap; loud is the 95th percentile of the mixture's.
FRAME_S = 0.1
BELOW_LOUD_DB, BELOW_MIXTURE_DB = 30.0, 20.0  # how far vocals may be below loud frames, and below the mixture's own


@dataclass(frozen=True, order=True)
class Segment:
    """A stretch of a song, in seconds."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        return self.end - self.start


def find_segments(
    activity: str,
    vocals: torch.Tensor,
    mixture: torch.Tensor,
    sampling_rate: int,
    max_gap_s: float = 1.0,
    min_segment_s: float = 2.0,
) -> list[Segment]:
    """Merged segments of a song, in order, with the short ones dropped.

    Args:
        activity: "silero" (the paper's), "energy", or "all" (the whole song is one segment).
        vocals, mixture: `(C, T)` at `sampling_rate` in hertz (Hz).
    """
    if activity not in ACTIVITIES:
        raise ValueError(f"The activity must be one of {list(ACTIVITIES)}, got {activity!r}.")
    if activity == "silero":
        segments = silero_segments(vocals, sampling_rate)
    elif activity == "energy":
        segments = energy_segments(vocals, mixture, sampling_rate)
    else:
        segments = [Segment(0.0, mixture.shape[-1] / sampling_rate)]
    return drop_short(merge_segments(segments, max_gap_s), min_segment_s)


def merge_segments(segments: Iterable[Segment], max_gap_s: float) -> list[Segment]:
    """Join segments that overlap or are at most `max_gap_s` seconds apart; sorted."""
    if max_gap_s < 0:
        raise ValueError(f"`max_gap_s` must not be negative, got {max_gap_s}.")
    merged: list[Segment] = []
    for segment in sorted(segments):
        if merged and segment.start - merged[-1].end <= max_gap_s:
            merged[-1] = Segment(merged[-1].start, max(merged[-1].end, segment.end))
        else:
            merged.append(segment)
    return merged


def drop_short(segments: Iterable[Segment], min_s: float = 2.0) -> list[Segment]:
    """Those of at least `min_s` seconds."""
    return [segment for segment in segments if segment.duration >= min_s]


def silero_segments(vocals: torch.Tensor, sampling_rate: int) -> list[Segment]:
    """Speech as Silero's network finds it, with the package's own smoothing (0.25 s at least, pauses of 0.1 s).

    Args:
        vocals: `(C, T)` at `sampling_rate` in hertz (Hz).

    Raises:
        ImportError: silero-vad or onnxruntime is missing.
    """
    model, get_timestamps = _silero()
    mono = resample(vocals.mean(dim=0).cpu(), sampling_rate, SILERO_RATE)
    found = get_timestamps(mono, model, threshold=0.5, sampling_rate=SILERO_RATE)
    end = vocals.shape[-1] / sampling_rate
    return [Segment(span["start"] / SILERO_RATE, min(span["end"] / SILERO_RATE, end)) for span in found]


@lru_cache(maxsize=1)
def _silero():
    # Importing silero_vad sets torch to one thread for the whole process; a teacher on a CPU needs them all.
    num_threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps_sequence, load_silero_vad

        # The same numbers as frame by frame, in fewer and larger calls.
        return load_silero_vad(sequence=True), get_speech_timestamps_sequence
    except ImportError as error:
        raise ImportError(f"'silero' needs two packages: pip install silero-vad onnxruntime ({error}).") from error
    finally:
        torch.set_num_threads(num_threads)


def energy_segments(vocals: torch.Tensor, mixture: torch.Tensor, sampling_rate: int) -> list[Segment]:
    """Frames in which the vocals are neither far below the song's loud parts nor far below what else is to be heard.

    The first rule leaves out reverberation and noise, the second the leakage of a separator, which follows the other
    instruments. Both are relative, so that a song's level does not matter.

    Args:
        vocals, mixture: `(C, T)` at `sampling_rate` in hertz (Hz).
    """
    if vocals.shape != mixture.shape:
        raise ValueError(f"Vocals {tuple(vocals.shape)} and mixture {tuple(mixture.shape)} must have the same shape.")
    frame = round(FRAME_S * sampling_rate)
    vocals_level, mixture_level = _frame_levels(vocals, frame), _frame_levels(mixture, frame)
    loud = torch.quantile(mixture_level, 0.95)
    if loud <= -90:  # a silent song: 16 bits end here
        return []
    active = vocals_level >= torch.maximum(loud - BELOW_LOUD_DB, mixture_level - BELOW_MIXTURE_DB)
    edges = torch.diff(active.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    starts, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
    seconds, end = frame / sampling_rate, vocals.shape[-1] / sampling_rate
    return [Segment(first * seconds, min(last * seconds, end)) for first, last in zip(starts, ends)]


def _frame_levels(waveform: torch.Tensor, frame: int) -> torch.Tensor:
    """`(C, T)` -> RMS of every frame in decibels (dB) of full scale, `(ceil(T / frame),)`; the last is filled up."""
    power = waveform.square().mean(dim=0).cpu()
    power = torch.nn.functional.pad(power, (0, -len(power) % frame)).view(-1, frame).mean(dim=1)
    return 10 * torch.log10(power + 1e-20)
