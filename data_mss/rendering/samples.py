"""Recorded instruments: drum kits and basses from folders of samples, struck softly and hard.

Velocity asks for a level; played is one of the two recordings around it, brought to that level. So soft hits are as
dark as soft hits are, no hit is repeated like a machine would, and a sample that is there once is made softer.
"""

import functools
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from scipy import ndimage

from processing_mss import AUDIO_SUFFIXES, read_audio
from processing_mss.resampling_mss import resample

from .score import GM_DRUMS, SAMPLING_RATE, Note

# Drums by name, most telling word first; a sample that fits nothing is left out.
DRUM_NAMES = {
    "kick": r"kick|kdrum|\bbd[_-]|bass[_ ]?drum|drum_bass",
    "open_hat": r"open[_ ]?(hat|hh)|hat[_ ]?open|\boh[_-]|cymbal_open",
    "hat": r"hat|\bhh|cymbal_(closed|pedal)",
    "rim": r"rim|stick",
    "clap": r"clap",
    "snare": r"snare|\bsn[_-]|\bsd[_-]",
    "tom": r"tom",
    "ride_bell": r"ride.*bell",
    "ride": r"ride|cymbal_soft",
    "crash": r"crash|splash|china|cymbal",
    "percussion": r"perc|cowbell|shaker|tambourine|conga|bongo",
}
# What plays a kind that a kit lacks, in this order; percussion that it lacks is not played.
RELATIVES = {
    "open_hat": "crash", "hat": "percussion", "ride": "hat", "ride_bell": "ride", "crash": "open_hat", "tom": "kick",
    "rim": "snare", "clap": "snare",
}  # fmt: skip
# Peak of the hardest hit of a kind.
PEAKS = {"kick": 1.0, "snare": 0.9, "clap": 0.8, "tom": 0.8, "rim": 0.5, "crash": 0.5, "ride": 0.35}
OTHER_PEAK = 0.4
STRENGTH = r"[_ -](v\d+|soft|hard)$"  # Snare_v08, drum_snare_hard
SIDE = r"(?<=[a-z])[LR](?=[A-Z]|$)|[_ -](l|r|left|right)$"  # KdrumL, RideRBell, crash_left
HEIGHT = r"\d+$|[_ -]*(?<![a-z])(hi|high|mid|middle|lo|low)(?![a-z])[_ -]*"  # Tom3, Tom Low, drum_tom_hi
BASS_NAME = re.compile(r"([a-g])([b#]?)(-?\d)_([a-z]+\d*)(?:_rr\d+)?$")  # eb3_ff_rr2, a0_vl1_rr1
SEMITONES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11, "": 0, "#": 1}

MIN_HIT_SECONDS = 0.02  # shorter files are broken
MAX_HIT_SECONDS = 4.0  # longer ones are loops
DYNAMICS = 30.0  # dB that a hit is softer at a tenth of the highest velocity: level goes with velocity ** 1.5
LEVEL_JITTER = 0.7  # dB
TIME_JITTER = 0.001  # seconds
CHOKE = 0.03  # seconds in which a closed hi-hat silences an open one
RELEASE = 0.06  # seconds that a bass note takes to end


class Piece(NamedTuple):
    """A drum or a cymbal: recordings `(2, T)` float32 at 48 kHz from soft to hard, and their levels in dB below the
    hardest, whose peak is that of its kind (`PEAKS`)."""

    name: str
    recordings: list[np.ndarray]
    levels: list[float]


class Take(NamedTuple):
    """A recorded bass note: `(T,)` float32 at 48 kHz, and the pitch that it has (MIDI, with its mistuning)."""

    waveform: np.ndarray
    pitch: float


class BassKey(NamedTuple):
    """A key that was recorded: takes by strength, from soft to hard, and levels in dB below the hardest, whose loudest
    20 ms have a mean square of 0.02."""

    pitch: int
    takes: list[list[Take]]
    levels: list[float]


Kit = dict[str, list[list[Piece]]]  # kind -> choices -> pieces that belong together (left and right, all toms)


def read_sample(path: Path) -> np.ndarray:
    """A sample `(1 or 2, T)` at 48 kHz from 1 ms before its onset on (2 % of the peak): hits come when they should."""
    waveform, rate = read_audio(path)
    waveform = resample(torch.from_numpy(waveform[:2]), rate, SAMPLING_RATE).numpy()
    envelope = np.abs(waveform).max(axis=0)
    onset = int(np.argmax(envelope > 0.02 * envelope.max())) if envelope.size else 0
    return waveform[:, max(0, onset - SAMPLING_RATE // 1000) :]


def level_of(waveform: np.ndarray) -> float:
    """Level of the loudest 20 ms in dB of mean square; what matters for how hard a hit is."""
    power = np.mean(waveform[:, : SAMPLING_RATE // 2] ** 2, axis=0)
    return float(10 * np.log10(ndimage.uniform_filter1d(power, SAMPLING_RATE // 50, mode="constant").max() + 1e-12))


def sample_names(folder: str) -> dict[Path, str]:
    """Audio files below a folder and what they are: by a `drumkit.xml` of Hydrogen beside them, or by their names."""
    names = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.name == "drumkit.xml":
            try:
                kit = ElementTree.parse(path)
            except ElementTree.ParseError as error:
                raise ValueError(
                    f"{path} is no XML: {error}. Repair it, or remove it: names of files tell drums too."
                ) from error
            for instrument in kit.iter():
                if instrument.tag.endswith("instrument"):
                    fields = [(field.tag.rpartition("}")[2], field.text or "") for field in instrument.iter()]
                    name = re.sub(r"^[a-g]#?\d - ", "", dict(fields[::-1]).get("name", ""))  # "c3 - bass drum 1"
                    names.update({path.parent / text: name for tag, text in fields if tag == "filename"})
        elif path.suffix.lower() in AUDIO_SUFFIXES and not (path.parent / "drumkit.xml").exists():
            names[path] = path.stem
    return names


@functools.lru_cache(maxsize=8)
def load_kit(folder: str) -> Kit:
    """Drum samples of a folder by kind (kick, snare, hat, ...: see `DRUM_NAMES`), piece and strength.

    A piece's strengths are files that differ in `_v01`, `_v02`, ... or `_soft`, `_hard`; they are sorted by level.
    Loops, rolls, samples of more than 4 s and broken ones (less than 20 ms) are left out.

    Raises:
        ValueError: no kick or no snare there, or a `drumkit.xml` that is none.
    """
    pieces: dict[tuple[str, Path, str], list[np.ndarray]] = defaultdict(list)
    for path, name in sample_names(folder).items():
        lower = name.lower()
        kind = next((kind for kind, pattern in DRUM_NAMES.items() if re.search(pattern, lower)), None)
        if kind is None or "loop" in lower or "roll" in lower:
            continue
        waveform = read_sample(path)
        if MIN_HIT_SECONDS <= waveform.shape[1] / SAMPLING_RATE <= MAX_HIT_SECONDS and waveform.any():
            pieces[kind, path.parent, re.sub(STRENGTH, "", name)].append(waveform)

    kit: dict[str, dict[tuple[Path, str], list[Piece]]] = {kind: defaultdict(list) for kind in DRUM_NAMES}
    for (kind, parent, name), recordings in pieces.items():
        recordings.sort(key=level_of)
        scale = PEAKS.get(kind, OTHER_PEAK) / np.abs(recordings[-1]).max()
        levels = [level_of(waveform) - level_of(recordings[-1]) for waveform in recordings]
        scaled = [np.broadcast_to(scale * waveform, (2, waveform.shape[1])) for waveform in recordings]
        family = re.sub(HEIGHT, "", name.lower()) if kind == "tom" else re.sub(SIDE, "", name)
        kit[kind][parent, family].append(Piece(name, scaled, levels))
    if not kit["kick"] or not kit["snare"]:
        raise ValueError(
            f"Need at least a kick and a snare (audio files named so, or a drumkit.xml) in the drums folder {folder}, "
            f"found {[kind for kind, families in kit.items() if families] or 'no drums'}."
        )
    return {kind: list(families.values()) for kind, families in kit.items()}


def choose_pieces(kit: Kit, rng: np.random.Generator) -> dict[str, list[Piece]]:
    """The drums of a song: of each kind one choice; a kind that the kit lacks is played by its relative, if any."""
    chosen = {kind: choices[rng.integers(len(choices))] for kind, choices in kit.items() if choices}
    for kind, relative in RELATIVES.items():
        if kind not in chosen and relative in chosen:
            chosen[kind] = chosen[relative]
    return chosen


def choose_strength(levels: list[float], velocity: int, rng: np.random.Generator) -> tuple[int, float]:
    """Which recording a velocity is played with, one of the two around its level, and the gain that it needs."""
    wanted = DYNAMICS * np.log10(velocity / 127)
    number = min(int(np.interp(wanted, levels, np.arange(len(levels))) + rng.random()), len(levels) - 1)
    return number, float(10 ** ((wanted - levels[number] + rng.normal(0, LEVEL_JITTER)) / 20))


def pitch_of_hit(piece: Piece) -> float:
    """The strongest frequency of a tom in hertz (Hz)."""
    mono = piece.recordings[-1].mean(axis=0)[SAMPLING_RATE // 50 : SAMPLING_RATE // 2]
    spectrum = np.abs(np.fft.rfft(mono * np.hanning(len(mono)), 1 << 16))
    frequencies = np.fft.rfftfreq(1 << 16, 1 / SAMPLING_RATE)
    return float(frequencies[np.argmax(spectrum * ((frequencies > 40) & (frequencies < 500)))])


def tune_toms(toms: list[Piece]) -> dict[int, Piece]:
    """A tom for each key: several are spread over the keys by pitch; a single one is read faster or more slowly, two
    semitones from key to key."""
    keys = GM_DRUMS["tom"]
    if len(toms) > 1:
        by_pitch = sorted(toms, key=pitch_of_hit)
        return {key: by_pitch[round(step / (len(keys) - 1) * (len(toms) - 1))] for step, key in enumerate(keys)}
    (tom,) = toms
    return {
        key: tom._replace(recordings=[read_faster(hit, 2 ** ((step - 2) / 6)) for hit in tom.recordings])
        for step, key in enumerate(keys)
    }


def read_faster(waveform: np.ndarray, speed: float) -> np.ndarray:
    """`(..., T)` -> `(..., T / speed)` float32, between the samples by cubic splines."""
    positions = np.arange(0, waveform.shape[-1] - 1, speed)
    rows = [
        ndimage.map_coordinates(row, positions[None], np.float32) for row in np.atleast_2d(waveform).astype(np.float32)
    ]
    return np.stack(rows).reshape(*waveform.shape[:-1], len(positions))


def play_drums(
    notes: list[Note], pieces: dict[str, list[Piece]], duration: float, rng: np.random.Generator
) -> np.ndarray:
    """Drum notes (General MIDI keys) with a kit's pieces -> `(2, duration * 48000)` float32.

    Left and right take turns, a closed hi-hat silences an open one, times and levels vary a little.
    """
    output = np.zeros((2, round(duration * SAMPLING_RATE)), dtype=np.float32)
    kind_of = {key: kind for kind, keys in GM_DRUMS.items() for key in keys}
    notes = sorted(notes)
    hats = np.array([note.start for note in notes if kind_of.get(note.pitch) in ("hat", "open_hat")])
    toms = tune_toms(pieces["tom"]) if any(kind_of.get(note.pitch) == "tom" for note in notes) else {}
    turns: dict[str, int] = defaultdict(int)
    for note in notes:
        kind = kind_of.get(note.pitch, "percussion")
        if kind not in pieces:
            continue
        piece = toms[note.pitch] if kind == "tom" else pieces[kind][turns[kind] % len(pieces[kind])]
        turns[kind] += 1
        number, gain = choose_strength(piece.levels, note.velocity, rng)
        hit = piece.recordings[number]
        if kind == "open_hat":
            later = hats[np.searchsorted(hats, note.start, side="right") :]
            if len(later):
                hit = cut(hit, round((later[0] - note.start) * SAMPLING_RATE), CHOKE)
        start = round((note.start + rng.uniform(-TIME_JITTER, TIME_JITTER)) * SAMPLING_RATE)
        add(output, hit, start, gain)
    return output


def cut(waveform: np.ndarray, length: int, fade: float) -> np.ndarray:
    """The beginning of a waveform `(..., T)`: `length` samples, and `fade` seconds in which it ends."""
    fading = round(fade * SAMPLING_RATE)
    if waveform.shape[-1] <= length:
        return waveform
    beginning = waveform[..., : length + fading].copy()
    beginning[..., length:] *= np.linspace(1, 0, fading, dtype=np.float32)[: beginning.shape[-1] - length]
    return beginning


def add(output: np.ndarray, waveform: np.ndarray, start: int, gain: float):
    """Add a waveform to an output `(..., T)` in place, cut at both ends."""
    waveform = waveform[..., max(0, -start) :][..., : max(0, output.shape[-1] - max(start, 0))]
    output[..., max(start, 0) : max(start, 0) + waveform.shape[-1]] += np.float32(gain) * waveform


def named_pitch(name: re.Match) -> int:
    """MIDI pitch of a name like eb3, where a4 is 69."""
    letter, accidental, octave, _ = name.groups()
    return 12 * (int(octave) + 1) + SEMITONES[letter] + (-1 if accidental == "b" else SEMITONES[accidental])


def measure_pitch(waveform: np.ndarray, low: float, high: float) -> float:
    """MIDI pitch between two others by the autocorrelation of half a second after the attack; nan if there is none."""
    mono = waveform[SAMPLING_RATE // 10 : SAMPLING_RATE // 10 + SAMPLING_RATE // 2].astype(np.float64)
    shortest, longest = (round(SAMPLING_RATE / (440 * 2 ** ((pitch - 69) / 12))) for pitch in (high, low))
    if len(mono) < 2 * longest:
        return float("nan")
    spectrum = np.fft.rfft(mono, 1 << 16)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: longest + 2] / (len(mono) - np.arange(longest + 2))
    inside = correlation[shortest : longest + 1]
    # A multiple of the period correlates as well as the period: the shortest of the good ones is the period.
    peaks = np.flatnonzero((inside[1:-1] >= inside[:-2]) & (inside[1:-1] > inside[2:])) + 1
    good = peaks[inside[peaks] > 0.9 * inside.max()]
    if not len(good) or inside.max() < 0.3 * correlation[0]:
        return float("nan")
    lag = shortest + good[0]
    before, at, after = correlation[lag - 1 : lag + 2]
    lag += (before - after) / (2 * (before - 2 * at + after))
    return float(69 + 12 * np.log2(SAMPLING_RATE / lag / 440))


@functools.lru_cache(maxsize=4)
def load_bass(folder: str) -> list[BassKey]:
    """A sampled bass, its keys from low to high, from files such as `eb3_ff_rr2.ogg`: note, strength, round robin.

    Names may be an octave off, as basses are written an octave above where they sound: the octave is the one that is
    measured. Mistuning of up to a semitone is measured too and played away.

    Raises:
        ValueError: no file has such a name.
    """
    files: dict[int, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(Path(folder).rglob("*")):
        name = BASS_NAME.match(path.stem.lower())
        if name and path.suffix.lower() in AUDIO_SUFFIXES:
            files[named_pitch(name)][name[4]].append(read_sample(path).mean(axis=0))
    if not files:
        raise ValueError(
            f"There are no bass samples in {folder}: name them by note, strength and round robin, as in eb3_ff_rr2.ogg."
        )
    waveforms = [(pitch, take) for pitch, layers in files.items() for takes in layers.values() for take in takes]
    distances = [measure_pitch(take, pitch - 26, pitch + 26) - pitch for pitch, take in waveforms]
    measured = [distance for distance in distances if np.isfinite(distance)]
    shift = 12 * round(float(np.median(measured)) / 12) if measured else 0

    keys = []
    for pitch, layers in sorted(files.items()):
        sounding = pitch + shift
        loud = {
            strength: float(np.mean([level_of(take[None]) for take in takes])) for strength, takes in layers.items()
        }
        hardest = max(loud.values())
        order = sorted(layers, key=loud.get)
        takes = [[tuned_take(take, sounding, hardest) for take in layers[strength]] for strength in order]
        keys.append(BassKey(sounding, takes, [loud[strength] - hardest for strength in order]))
    return keys


def tuned_take(waveform: np.ndarray, pitch: int, hardest: float) -> Take:
    """A take with its measured pitch, if that is within a semitone of the one it should have."""
    measured = measure_pitch(waveform, pitch - 1, pitch + 1)
    return Take(waveform * np.float32(10 ** ((-17 - hardest) / 20)), measured if np.isfinite(measured) else pitch)


def play_bass(notes: list[Note], keys: list[BassKey], duration: float, rng: np.random.Generator) -> np.ndarray:
    """Notes with a sampled bass -> `(2, duration * 48000)` float32, the same in both channels.

    The nearest key is read faster or more slowly; notes out of the range move by octaves; round robins take turns.
    """
    output = np.zeros(round(duration * SAMPLING_RATE), dtype=np.float32)
    pitches = np.array([key.pitch for key in keys])
    turns: dict[tuple[int, int], int] = defaultdict(int)
    for note in sorted(notes):
        pitch = note.pitch
        while pitch < pitches[0] - 2:
            pitch += 12
        while pitch > pitches[-1] + 2:
            pitch -= 12
        key = keys[int(np.argmin(np.abs(pitches - pitch)))]
        number, gain = choose_strength(key.levels, note.velocity, rng)
        takes = key.takes[number]
        take = takes[turns[key.pitch, number] % len(takes)]
        turns[key.pitch, number] += 1
        speed = 2 ** ((pitch - take.pitch) / 12)
        length = round((note.end - note.start) * SAMPLING_RATE)
        needed = int((length + RELEASE * SAMPLING_RATE) * speed) + 2
        add(
            output,
            cut(read_faster(take.waveform[:needed], speed), length, RELEASE),
            round(note.start * SAMPLING_RATE),
            gain,
        )
    return np.stack((output, output))
