"""Where a run stands, and its checkpoints.

A checkpoint is a folder `checkpoints/step-00001000`: Accelerate's state (optimisers, schedules, random generators), the
weights of each player without what is frozen, and the run's state. It is written under a temporary name and renamed:
what has its final name is whole.
"""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from .stage import unwrapped

CHECKPOINT_PREFIX = "step-"


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
    """Whole checkpoints of a run, oldest first."""
    folders = (Path(output_dir) / "checkpoints").glob(f"{CHECKPOINT_PREFIX}*")
    return sorted(folder for folder in folders if folder.name.removeprefix(CHECKPOINT_PREFIX).isdigit())


def last_state(output_dir: str | os.PathLike) -> RunState:
    """Where the newest checkpoint of a run stands; at the start, if there is none."""
    state = RunState()
    if folders := checkpoint_folders(output_dir):
        # Accelerate's name for the first object that the loop registers.
        state.load_state_dict(torch.load(folders[-1] / "custom_checkpoint_0.pkl", weights_only=True))
    return state


def save_checkpoint(accelerator: Accelerator, output_dir: str | os.PathLike, step: int, total_limit: int) -> Path:
    """Write a checkpoint, then delete the oldest ones beyond `total_limit`. Every process has to call it."""
    folder = Path(output_dir) / "checkpoints" / f"{CHECKPOINT_PREFIX}{step:08d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(temporary)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # the same step again, after a resumed run that did nothing
        os.replace(temporary, folder)
        for old in checkpoint_folders(output_dir)[:-total_limit]:
            # First out of sight, so that a kill in between leaves no half checkpoint under a valid name.
            hidden = old.with_name(f".{old.name}.old")
            os.replace(old, hidden)
            shutil.rmtree(hidden)
    accelerator.wait_for_everyone()
    return folder


def keep_frozen_weights_out(accelerator: Accelerator, players: dict[str, nn.Module], frozen: tuple[str, ...]) -> None:
    """Let checkpoints hold `NAME.safetensors` per player, without the weights whose names start with `frozen`.

    Sharded models (FSDP) are left to Accelerate, which knows how to gather them.
    """

    def save(models, weights, folder):
        if accelerator.is_main_process:
            for name, player in players.items():
                save_learned_weights(unwrapped(player), Path(folder) / f"{name}.safetensors", frozen)
        weights.clear()

    def load(models, folder):
        for name, player in players.items():
            load_learned_weights(unwrapped(player), Path(folder) / f"{name}.safetensors", frozen)
        models.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_learned_weights(module: nn.Module, path: Path, frozen: tuple[str, ...]) -> None:
    """Write the state of a module without what is frozen, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({key: value.contiguous() for key, value in learned_weights(module, frozen).items()}, temporary)
    os.replace(temporary, path)


def learned_weights(module: nn.Module, frozen: tuple[str, ...]) -> dict:
    """The state of a module without what is frozen."""
    return {name: value for name, value in module.state_dict().items() if not name.startswith(frozen)}


def load_learned_weights(module: nn.Module, path: Path, frozen: tuple[str, ...]) -> None:
    """Load `NAME.safetensors` of a checkpoint; what is frozen stays as it is.

    Raises:
        ValueError: the file is not there or belongs to another model.
    """
    if not path.is_file():
        raise ValueError(f"The checkpoint {path.parent} has no {path.name}: it was made by another stage.")
    try:
        result = module.load_state_dict(load_file(path), strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this configuration: {error}") from error
    missing = [name for name in result.missing_keys if not name.startswith(frozen)]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{path} does not fit this configuration: missing {missing[:5]}, unexpected {result.unexpected_keys[:5]}."
        )
