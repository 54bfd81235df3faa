"""Where a run stands, and its checkpoints.

A checkpoint is a folder `checkpoints/step-00001000`: Accelerate's state (optimisers, schedules, random generators), the
weights of each network without what is frozen, the run's state, and a list of all files with their SHA-256. It is
written under a temporary name and renamed: what has its final name is whole, unless the machine went down before the
disk had it all, or somebody changed it. Such a one is renamed to `step-00001000.damaged-1` when a run resumes, and the
one before it counts.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .stage import unwrapped

CHECKPOINT_PREFIX = "step-"
STATE_FILE = "custom_checkpoint_0.pkl"  # Accelerate's name for the first object that the loop registers
DIGESTS_FILE = "sha256.json"
LOCK_FILE = ".lock"  # stays in the run's folder: removing it could let two in
LOCK_PATIENCE_S = 10.0  # workers of a run that was killed hold its lock until they miss it, after some seconds
INTERRUPTED = 130  # exit code of a run that a signal ended before its last step


@dataclass
class RunState:
    """Counters that outlive a run.

    Args:
        step: updates made.
        num_skipped: updates left out because something was not finite; num_skipped_in_a_row: at the end so far.
        train_seconds: time in the loop, over all runs.
        best_step, best_scores: the validation with the highest score, where a stage keeps its best weights.
    """

    step: int = 0
    num_skipped: int = 0
    num_skipped_in_a_row: int = 0
    train_seconds: float = 0.0
    best_step: int = 0
    best_scores: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def checkpoint_folders(output_dir: str | os.PathLike) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    folders = (Path(output_dir) / "checkpoints").glob(f"{CHECKPOINT_PREFIX}*")
    return sorted(folder for folder in folders if folder.name.removeprefix(CHECKPOINT_PREFIX).isdigit())


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, as that a file is missing or cut off; None: it is whole. Reads all of it."""
    name = DIGESTS_FILE
    try:
        digests = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            if sha256(checkpoint / name) != digest:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    except (ValueError, AttributeError):  # no JSON, or no object
        return f"{name} is not what was written"
    return None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def restore_replaced(output_dir: str | os.PathLike) -> None:
    """Give a checkpoint its name back that a run had set aside to replace it, if it was killed right then."""
    for old in (Path(output_dir) / "checkpoints").glob(f".{CHECKPOINT_PREFIX}*.old"):
        folder = old.with_name(old.name[1:].removesuffix(".old"))
        if not folder.exists():
            os.replace(old, folder)


def newest_whole(output_dir: str | os.PathLike) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that is whole, if there is one, and what is wrong with each newer one."""
    damages = {}
    for folder in reversed(checkpoint_folders(output_dir)):
        what = damage(folder)
        if what is None:
            return folder, damages
        damages[folder] = what
    return None, damages


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that neither a resumed run takes it for its newest nor overwrites it."""
    earlier = len(list(checkpoint.parent.glob(f"{checkpoint.name}.damaged-*")))
    return checkpoint.rename(f"{checkpoint}.damaged-{earlier + 1}")


def last_state(output_dir: str | os.PathLike) -> RunState:
    """Where the newest whole checkpoint of a run stands; at the start, if there is none."""
    state = RunState()
    folder, _ = newest_whole(output_dir)
    if folder:
        state.load_state_dict(torch.load(folder / STATE_FILE, weights_only=True))
    return state


@contextmanager
def locked(accelerator: Accelerator, output_dir: str | os.PathLike) -> Iterator[None]:
    """Keep other trainings out of a run's folder. Every process has to call it.

    Raises:
        ValueError: another one is there.
    """
    lock, is_free = FileLock(Path(output_dir) / LOCK_FILE, timeout=LOCK_PATIENCE_S), True
    if accelerator.is_main_process:
        try:
            lock.acquire()
        except Timeout:
            is_free = False
    (is_free,) = broadcast_object_list([is_free])
    if not is_free:
        raise ValueError(
            f"Another training is writing to {output_dir}: wait for its end, or choose another --output_dir."
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of what is raised inside that `path` could not be written.

    torch has only its own words for a full disk ("unexpected pos 704 vs 598"), and none of the writers names the file.

    Raises:
        OSError: with the reason and the room that is left.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        there = next(folder for folder in path.absolute().parents if folder.is_dir())
        room = shutil.disk_usage(there).free / 2**20
        raise OSError(
            f"Cannot write {path} ({error}; {room:.0f} MiB are free there): once it can be written, --resume goes on "
            "from the last checkpoint."
        ) from error


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` at the end, or is removed if something was raised.

    Raises:
        OSError: it cannot be written; what had the name before is still there.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    if old.is_dir() and not folder.exists():  # a run was killed between the two renames below
        os.replace(old, folder)
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            yield temporary
            if folder.is_dir():
                os.replace(folder, old)
            try:
                os.replace(temporary, folder)
            except OSError:
                if old.is_dir():
                    os.replace(old, folder)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(accelerator: Accelerator, output_dir: str | os.PathLike, step: int, total_limit: int) -> Path:
    """Write a checkpoint, then delete the oldest ones beyond `total_limit`. Every process has to call it.

    Raises:
        OSError: it cannot be written, as on a full disk; nothing of it is left.
    """
    folder = Path(output_dir) / "checkpoints" / f"{CHECKPOINT_PREFIX}{step:08d}"
    temporary, replaced = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    try:
        with writing(folder):
            if accelerator.is_main_process:
                for left in folder.parent.glob(f".{CHECKPOINT_PREFIX}*"):  # by a run that was killed
                    shutil.rmtree(left, ignore_errors=True)
                temporary.mkdir(parents=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(temporary)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                files = [path for path in temporary.rglob("*") if path.is_file()]
                digests = {path.relative_to(temporary).as_posix(): sha256(path) for path in sorted(files)}
                (temporary / DIGESTS_FILE).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
                if folder.is_dir():  # the same step again
                    os.replace(folder, replaced)
                os.replace(temporary, folder)
                shutil.rmtree(replaced, ignore_errors=True)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if accelerator.is_main_process:
            restore_replaced(output_dir)
        raise
    if accelerator.is_main_process:
        for old in checkpoint_folders(output_dir)[:-total_limit]:
            # First out of sight, so that a kill in between leaves no half checkpoint under a valid name.
            hidden = old.with_name(f".{old.name}.going")
            os.replace(old, hidden)
            shutil.rmtree(hidden)
    accelerator.wait_for_everyone()
    return folder


def keep_frozen_weights_out(accelerator: Accelerator, networks: dict[str, nn.Module], frozen: tuple[str, ...]) -> None:
    """Let checkpoints hold `NAME.safetensors` per network, without the weights whose names start with `frozen`."""

    def save(models, weights, folder):
        if accelerator.is_main_process:
            for name, network in networks.items():
                save_learned_weights(unwrapped(network), Path(folder) / f"{name}.safetensors", frozen)
        weights.clear()

    def load(models, folder):
        for name, network in networks.items():
            load_learned_weights(unwrapped(network), Path(folder) / f"{name}.safetensors", frozen)
        models.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_learned_weights(module: nn.Module, path: Path, frozen: tuple[str, ...]) -> None:
    """Write the state of a module without what is frozen, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({key: value.contiguous() for key, value in learned_weights(module, frozen).items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def learned_weights(module: nn.Module, frozen: tuple[str, ...]) -> dict:
    """The state of a module without what is frozen."""
    return {name: value for name, value in module.state_dict().items() if not name.startswith(frozen)}


def load_learned_weights(module: nn.Module, path: Path, frozen: tuple[str, ...]) -> None:
    """Load `NAME.safetensors` of a checkpoint; what is frozen stays as it is, and so do the types of the weights.

    Raises:
        ValueError: the file is not there, damaged, or belongs to another model.
    """
    if not path.is_file():
        raise ValueError(f"The checkpoint {path.parent} has no {path.name}: it was made by another stage.")
    try:
        result = module.load_state_dict(load_file(path), strict=False)
    except SafetensorError as error:
        raise ValueError(f"Cannot read {path}: {error}.") from error
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this configuration: {error}") from error
    missing = [name for name in result.missing_keys if not name.startswith(frozen)]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{path} does not fit this configuration: missing {missing[:5]}, unexpected {result.unexpected_keys[:5]}."
        )
