"""MUSDB18-HQ (five wavs a song) and MUSDB18 (`.stem.mp4`) -> manifest.

The data set has to be requested by its user (zenodo.org/records/3338373); nothing of it is here.
"""

import os
import tempfile
from functools import partial
from pathlib import Path

import av
import numpy as np

from processing_mss import write_audio

from .audio_files import probe_audio
from .manifest import STEMS, ManifestWriter, Song
from .preparing import PrepareReport, made_from, prepare_songs

STEM_STREAMS = {"mixture": 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}  # of a .stem.mp4
LICENCE = "MUSDB18: educational use only, see its page"

# The customary validation split of the train folder (sigsep/sigsep-mus-db, configs/mus.yaml).
VALIDATION_SONGS = {
    "ANiMAL - Rockshow",
    "Actions - One Minute Smile",
    "Alexander Ross - Goodbye Bolero",
    "Clara Berry And Wooldog - Waltz For My Victims",
    "Fergessen - Nos Palpitants",
    "James May - On The Line",
    "Johnny Lokke - Promises & Lies",
    "Leaf - Summerghost",
    "Meaxic - Take A Step",
    "Patrick Talbot - A Reason To Leave",
    "Skelpolu - Human Mistakes",
    "Traffic Experiment - Sirens",
    "Triviul - Angelsaint",
    "Young Griffo - Pennies",
}


def prepare_musdb18(input_dir: str | os.PathLike, output_dir: str | os.PathLike) -> PrepareReport:
    """Write `output_dir/manifest.jsonl` for a folder with `train/` and `test/`.

    Songs in wav are read where they are. A `.stem.mp4` does not seek exactly, so its five streams are unpacked to FLAC
    (16 bit, as good as the AAC inside) in `output_dir/<split>/<song>/`.

    Raises:
        ValueError: neither `train/` nor `test/` holds songs, or the manifest is of another folder's.
    """
    input_dir, output_dir = Path(input_dir), Path(output_dir)
    jobs, wanted = [], {}
    for part in ("train", "test"):
        for path in sorted((input_dir / part).glob("*")):
            name = path.name.removesuffix(".stem.mp4")
            song_id, split = f"{part}/{name}", "validation" if part == "train" and name in VALIDATION_SONGS else part
            if path.is_dir() and (path / "mixture.wav").exists():
                wanted[song_id] = made_from(sorted(path.glob("*.wav")))
                jobs.append((song_id, partial(_from_wavs, path, song_id, split)))
            elif path.name.endswith(".stem.mp4"):
                wanted[song_id] = made_from([path])
                jobs.append((song_id, partial(_from_stem_file, path, output_dir / song_id, song_id, split)))
    if not jobs:
        raise ValueError(
            f"No songs in {input_dir}: expected train/ and test/ with <song>/mixture.wav or <song>.stem.mp4."
        )
    return prepare_songs(ManifestWriter(output_dir / "manifest.jsonl"), jobs, "musdb18", wanted)


def _from_wavs(folder: Path, song_id: str, split: str, suffix: str = "wav") -> Song:
    infos = {stem: probe_audio(folder / f"{stem}.{suffix}") for stem in (*STEMS, "mixture")}
    if len({info.sampling_rate for info in infos.values()}) > 1:
        raise ValueError(f"{folder}: the stems have different sampling rates.")
    return Song(
        id=song_id,
        split=split,
        stems={stem: [str(folder / f"{stem}.{suffix}")] for stem in STEMS},
        mixture=str(folder / f"mixture.{suffix}"),
        duration=infos["mixture"].duration,
        sampling_rate=infos["mixture"].sampling_rate,
        source="musdb18",
        licence=LICENCE,
    )


def _from_stem_file(path: Path, target: Path, song_id: str, split: str) -> Song:
    streams = read_stem_file(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as temporary:
            folder = Path(temporary) / "song"
            for name, (waveform, sampling_rate) in streams.items():
                write_audio(folder / f"{name}.flac", waveform, sampling_rate)
            os.replace(folder, target)
    return _from_wavs(target, song_id, split, suffix="flac")


def read_stem_file(path: str | os.PathLike) -> dict[str, tuple[np.ndarray, int]]:
    """The five streams of a `.stem.mp4`: name -> (`(channels, samples)` float32, rate in hertz).

    PyAV brings its own FFmpeg; the `stempeg` package needs one on the machine.

    Raises:
        ValueError: no stem file, or one that breaks off.
    """
    try:
        return {name: _read_stream(path, index) for name, index in STEM_STREAMS.items()}
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"Cannot read {path} as a stem file with five audio streams: {error}") from error


def _read_stream(path: str | os.PathLike, index: int) -> tuple[np.ndarray, int]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[index]
        frames = [frame.to_ndarray() for frame in container.decode(stream)]
        if not frames or frames[0].dtype != np.float32:
            raise IndexError("an audio stream is empty or not AAC")
        return np.concatenate(frames, axis=1), stream.rate
