"""Scores on disk: JSON lines, one for each time that a system was scored on an excerpt, a file a shard."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from data_mss.sharding import whole_records

from .protocol import CODEC
from .songs import Excerpt
from .systems import System

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
