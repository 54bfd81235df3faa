"""Work shared by several processes and machines."""

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
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


def default_device() -> torch.device:
    """The device of this process as Accelerate assigns it; without Accelerate, the accelerator that torch finds."""
    state = accelerate_state()
    if state:
        return state.device
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


@contextlib.contextmanager
def ends_together() -> Iterator[None]:
    """In a launch, no process ends before all are done here: launchers end all others when one ends with an exit code.

    A process group of its own, since those of Accelerate give up after 10 or 30 minutes. An error ends the launch.
    """
    import torch.distributed as dist

    is_launched = accelerate_state() is not None and dist.is_available() and dist.is_initialized()
    everyone = dist.new_group(backend="gloo", timeout=timedelta(days=7)) if is_launched else None
    yield
    if is_launched:
        dist.barrier(everyone)


def whole_records(path: Path) -> list[dict]:
    """Records of JSON lines that another process may be writing to: a last line without its end is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # splitlines would cut at U+2028 in a name, too
    return [json.loads(line) for line in lines if line]
