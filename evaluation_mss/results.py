"""What an evaluation keeps in its folder.

Scores are JSON lines, one for each time that a system was scored on an excerpt, a file for each shard. The sound of a
few excerpts, for spectrograms and audio players, is `audio/SYSTEM/EXCERPT/STEM.flac`.
"""

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data_mss.sharding import whole_records
from processing_mss import write_audio

from .protocol import CODEC
from .songs import EvaluationSong, Excerpt
from .systems import System

GIVEN = ("mixture", "reference")  # kept for every excerpt; the bounds of these names are the same sounds
IDENTITY_FILE = "identity.txt"  # written last: the excerpt is complete; the system's identity, and the length asked for

Key = tuple[str, str, str, float | None]  # system, its identity, excerpt, duration that was asked for


def pair_key(system: System, excerpt: Excerpt) -> Key:
    return system.name, system.identity, excerpt.name, excerpt.duration_s


def record_key(record: dict) -> Key:
    return record["system"], record["identity"], record["excerpt"], record["excerpt_s"]


class ScoreLines:
    """Appends lines to one shard's file. A last line that was cut off by a kill is dropped.

    Args:
        folder: the output folder, which is made.
        shard: "00000-of-00004".
    """

    def __init__(self, folder: Path, shard: str):
        self.path = folder / f"scores-{shard}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)

    def add(self, record: dict):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_records(folder: Path) -> list[dict]:
    """Whole lines of all shards, the oldest first."""
    records = [record for path in sorted(folder.glob("scores-*.jsonl")) for record in whole_records(path)]
    return sorted(records, key=lambda record: record["date"])


@dataclass
class Result:
    """What is known of one system on one excerpt: newer lines replace what older ones say of the same score.

    Args:
        song: its id.
        scores: score -> stem -> value.
        finished: metrics that ran ("visqol", "visqol_codec").
        unavailable: metrics that could not, and why.
        error: of the system, if it failed when it last ran; scores from before stay.
        seconds: that separation took, of `duration_s` of audio.
        versions: metric -> package that it ran with.
    """

    song: str
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    unavailable: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0
    duration_s: float = 0.0
    date: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def update(self, record: dict, codec: str | None):
        self.date = record["date"]
        if "error" in record:
            self.error = record["error"]
            return
        self.error = None
        self.seconds, self.duration_s = record["seconds"], record["duration_s"]
        self.versions.update(record["versions"])

        def counts(name: str) -> bool:
            return not name.endswith(CODEC) or record["codec"] == codec

        self.scores.update({score: values for score, values in record["scores"].items() if counts(score)})
        for metric in filter(counts, record["metrics"]):
            self.finished.add(metric)
            self.unavailable.pop(metric, None)
        for metric in filter(counts, record["unavailable"]):
            self.unavailable[metric] = record["unavailable"][metric]


def collect(records: list[dict], codec: str | None) -> dict[Key, Result]:
    """Results by key. Scores in `*_codec` of another codec than this one (its identity) do not count."""
    results: dict[Key, Result] = {}
    for record in records:
        results.setdefault(record_key(record), Result(record["song"])).update(record, codec)
    return results


def kept_identity(folder: Path) -> str | None:
    """Of the system whose sound is in `audio/SYSTEM/EXCERPT`; None if it is not complete."""
    file = folder / IDENTITY_FILE
    return file.read_text(encoding="utf-8").split("\n")[0] if file.is_file() else None


class KeptAudio:
    """16-bit FLAC, cut at full scale, at the song's rate.

    Args:
        folder: of all kept audio.
        excerpts: those that are kept.
    """

    def __init__(self, folder: Path, excerpts: Iterable[Excerpt]):
        self.folder, self._durations = folder, {excerpt.name: excerpt.duration_s for excerpt in excerpts}

    def lacks(self, system: System, excerpt: str) -> bool:
        """Whether an excerpt is to be kept, and this system's estimates of it are not there yet."""
        if excerpt not in self._durations or system.name in GIVEN:
            return False
        return not self._has(system.name, excerpt, system.identity)

    def write(self, system: System, song: EvaluationSong, estimates: dict[str, torch.Tensor]):
        """Keep the estimates, and song and true stems beside them."""
        if not self.lacks(system, song.name):
            return
        given = {"mixture": {"mixture": song.mixture}, "reference": dict(zip(song.stems, song.references))}
        for name, sounds in given.items():
            if not self._has(name, song.name, song.song_id):
                self._replace(name, song, sounds, song.song_id)
        self._replace(system.name, song, estimates, system.identity)

    def _has(self, name: str, excerpt: str, identity: str) -> bool:
        file = self.folder / name / excerpt / IDENTITY_FILE
        return file.is_file() and file.read_text(encoding="utf-8") == self._mark(excerpt, identity)

    def _mark(self, excerpt: str, identity: str) -> str:
        # The name of an excerpt says where it begins, not how long it is.
        return f"{identity}\n{self._durations[excerpt]} s asked for\n"

    def _replace(self, name: str, song: EvaluationSong, sounds: dict[str, torch.Tensor], identity: str):
        folder = self.folder / name / song.name
        for file in folder.glob("*"):  # of another checkpoint or length
            file.unlink()
        for stem, sound in sounds.items():
            write_audio(folder / f"{stem}.flac", sound.numpy(), song.sampling_rate)
        folder.mkdir(parents=True, exist_ok=True)  # also where there is no estimate to write
        (folder / IDENTITY_FILE).write_text(self._mark(song.name, identity), encoding="utf-8")


def replace_text(path: Path, text: str):
    """Write a file that several processes may write, and others read meanwhile."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
