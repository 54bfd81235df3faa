"""The output of pseudo-labelling on disk: a folder a song, lines of a manifest, and the list of finished songs."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from processing_mss import write_audio

from ..manifest import ManifestWriter, Song, append_line
from ..preparing import check_made_from
from ..sharding import whole_records
from .voice_activity import Segment

# Written into a song's folder before that gets its name; all that manifest lines are made of.
SEGMENTS_FILE = "segments.json"


@dataclass
class LabelledSegment:
    """One segment of a song on disk.

    Args:
        name: of its folder.
        start, end: in seconds of the song.
        stems: those of vocals, drums, bass, other that the teacher has.
        gain: factor on all its stems, below 1 only where a stem would have been cut at full scale.
        confidence: see the function of this name.
    """

    name: str
    start: float
    end: float
    stems: list[str]
    gain: float
    confidence: float


def confidence(mixture: torch.Tensor, stems: torch.Tensor) -> float:
    """How well stems add up to the song: max(0, 1 - |x - sum|^2 / |x|^2), 0 for silence.

    It says nothing of teachers whose stems add up by construction: Spleeter here, and networks with one stem, where the
    other is what remains.

    Args:
        mixture: `(C, T)`.
        stems: `(S, C, T)`.
    """
    energy = mixture.square().sum()
    if energy == 0:
        return 0.0
    return max(0.0, 1 - float((mixture - stems.sum(dim=0)).square().sum() / energy))


class FinishedList:
    """Names of finished work, one JSON line each, a file per shard. Those of all shards in the folder count.

    A last line that was cut off by a kill is dropped.

    Args:
        path: this shard's file, e.g. "progress/finished-00000-of-00004.jsonl"; its folder is made.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
        files = sorted(self.path.parent.glob("finished-*.jsonl"))
        self.made_from = {record["name"]: record.get("made_from") for file in files for record in whole_records(file)}

    def __contains__(self, name: str) -> bool:
        return name in self.made_from

    def add(self, name: str, num_segments: int, made_from: dict):
        record = {"name": name, "num_segments": num_segments, "made_from": made_from}
        append_line(self.path, json.dumps(record, ensure_ascii=False))
        self.made_from[name] = made_from


class LabelFolder:
    """One shard's view of the output folder.

    A song is written, registered (its lines in the manifest), and listed as finished, in this order; after a kill the
    next run finds how far it got.

    Args:
        shard: part of the names of this shard's files, e.g. "00000-of-00004".
        source, split, licence: of all entries.
    """

    def __init__(self, folder: Path, shard: str, source: str, split: str, licence: str):
        self.folder = folder
        self._common = {"source": source, "split": split, "licence": licence}
        self.manifest = ManifestWriter(folder / f"manifest-{shard}.jsonl")
        self.finished = FinishedList(folder / "progress" / f"finished-{shard}.jsonl")

    def is_complete(self, name: str) -> bool:
        """Whether the song's folder is there with all its audio."""
        return (self.folder / name / SEGMENTS_FILE).is_file()

    def check(self, wanted: dict[str, dict]):
        """Raise ValueError for a song that is there, but was made from something else, or otherwise.

        Args:
            wanted: `preparing.made_from` of songs, by name.
        """
        unlisted = [name for name in wanted if name not in self.finished and self.is_complete(name)]
        complete = {name: self._record(name).get("made_from") for name in unlisted}
        check_made_from(self.folder, {**self.finished.made_from, **complete}, wanted)

    def write(
        self,
        name: str,
        segments: list[Segment],
        mixture: torch.Tensor,
        stems: dict[str, torch.Tensor],
        sampling_rate: int,
        made_from: dict,
    ):
        """Make a song's folder under a temporary name, then give it its own. No segments, no folder.

        Args:
            mixture: `(C, T)` at `sampling_rate` in hertz (Hz).
            stems: `(C, T)` each.
            made_from: see `check`.
        """
        if not segments:
            return
        final = self.folder / name
        temporary = final.with_name(f".{final.name}.unfinished")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        labelled = []
        for index, segment in enumerate(segments):
            span = slice(round(segment.start * sampling_rate), round(segment.end * sampling_rate))
            pieces = torch.stack([waveform[:, span] for waveform in stems.values()]).cpu()
            # One factor for all stems, so that they keep their levels among each other.
            gain = min(1.0, (1 - 2**-15) / max(float(pieces.abs().max()), 1e-9))
            for stem, piece in zip(stems, pieces):
                write_audio(temporary / f"{index:03d}" / f"{stem}.flac", (gain * piece).numpy(), sampling_rate)
            score = round(confidence(mixture[:, span].cpu(), pieces), 6)
            labelled.append(LabelledSegment(f"{index:03d}", segment.start, segment.end, list(stems), gain, score))
        record = {
            "made_from": made_from,
            "sampling_rate": sampling_rate,
            **self._common,
            "segments": [asdict(segment) for segment in labelled],
        }
        (temporary / SEGMENTS_FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        temporary.rename(final)

    def register(self, name: str, made_from: dict, recover: bool = False):
        """Write the manifest's lines of a song and list the song as finished.

        Args:
            recover: some lines may be there, in the manifest of any shard (a run may go on with more or fewer shards).
        """
        known = self._ids_of_all_shards() if recover else set()
        songs = self._entries(name) if self.is_complete(name) else []
        for song in songs:
            if song.id not in known:
                self.manifest.add(song)
        self.finished.add(name, len(songs), made_from)

    def _entries(self, name: str) -> list[Song]:
        folder = (self.folder / name).resolve()
        record = self._record(name)
        segments = [LabelledSegment(**values) for values in record["segments"]]
        return [
            Song(
                id=f"{name}#{segment.name}",
                split=record["split"],
                stems={stem: [str(folder / segment.name / f"{stem}.flac")] for stem in segment.stems},
                duration=round(segment.end - segment.start, 6),
                sampling_rate=record["sampling_rate"],
                source=record["source"],
                licence=record["licence"],
                confidence=segment.confidence,
            )
            for segment in segments
        ]

    def _record(self, name: str) -> dict:
        return json.loads((self.folder / name / SEGMENTS_FILE).read_text(encoding="utf-8"))

    def _ids_of_all_shards(self) -> set[str]:
        files = sorted(self.folder.glob("manifest-*.jsonl"))
        return {record["id"] for file in files for record in whole_records(file)}
