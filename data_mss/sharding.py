"""Work shared by several processes and machines, and a list of what is finished that outlives a kill."""

import json
import os
from pathlib import Path

import torch


def shard_of_this_process(shard_index: int | None = None, num_shards: int | None = None) -> tuple[int, int]:
    """(index, number) of this process's shard: as given, or Accelerate's rank and world size, or (0, 1) without it.

    Raises:
        ValueError: only one of the two is given, or the index is outside.
    """
    if (shard_index is None) != (num_shards is None):
        raise ValueError(f"Give both or neither: got shard_index={shard_index}, num_shards={num_shards}.")
    if shard_index is None:
        state = accelerate_state()
        return (state.process_index, state.num_processes) if state else (0, 1)
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"Need 0 <= shard_index < num_shards, got shard_index={shard_index}, num_shards={num_shards}.")
    return shard_index, num_shards


def accelerate_state():
    """Accelerate's `PartialState`, or None if it is not installed."""
    try:
        from accelerate import PartialState
    except ImportError:
        return None
    # Unless told so, it takes the processes of `accelerate launch --cpu` for one alone: each would do every song.
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available())


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
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.made_from[name] = made_from


def whole_records(path: Path) -> list[dict]:
    """Records of JSON lines that another process may be writing to: a last line without its end is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # splitlines would cut at U+2028 in a name, too
    return [json.loads(line) for line in lines if line]
