"""What a stage of training is: the contract between the loop and `hubert_step`, `codec_step`, `mask_step`,
`separator_step`, `peer_step`."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from .configuration import OptimizerConfig, StageConfig, TrainingConfig


@dataclass
class StepLoss:
    """A loss for the loop to send back.

    Args:
        network: whose weights it trains, a key of `Stage.networks`.
        loss: scalar, a mean over the batch.
        metrics: tensors for the log, detached, "loss" among them; the loop averages them over steps and processes (see
            `describe`).
    """

    network: str
    loss: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


def unwrapped(network: nn.Module) -> nn.Module:
    """A network in its plain form, neither distributed nor compiled: its names of weights are those of every run."""
    return extract_model_from_parallel(network, keep_torch_compile=False)


def scores_by_stem(name: str, ratios: torch.Tensor, stems: list[str]) -> dict[str, torch.Tensor]:
    """Scores `(B, S)` as `validate` gives them: the mean over stems under `name`, and each as `name/STEM`, `(B,)`."""
    return {name: ratios.nanmean(dim=1)} | {f"{name}/{stem}": ratios[:, index] for index, stem in enumerate(stems)}


def samples_of(stems: list[str], mixture: torch.Tensor, **tracks: torch.Tensor) -> dict[str, torch.Tensor]:
    """The first crop of a batch as `demonstrate` gives it: the mixture `(B, T)`, and of `tracks` `(B, S, T)`, by kind,
    every stem as `STEM_KIND`."""
    samples = {"mixture": mixture[0]}
    for index, stem in enumerate(stems):
        samples |= {f"{stem}_{kind}": track[0, index] for kind, track in tracks.items()}
    return samples


class Stage(ABC):
    """One of the trainings.

    A batch is a mapping with `stems` `(B, S, T)` and `mixture` `(B, T)`, float32 at 48 kHz on the device, augmented and
    levelled; `known` `(B, S)` and `estimated` `(B,)`, bool, on the device (`StemDataset.labels`); from the token bank
    also `audio_codes` `(B, S, 2 F, Q)`.

    Attributes:
        networks: the modules that are trained, in the order of their updates. The loop replaces them by their prepared
            (distributed, autocast) forms: call these for training.
        frozen: prefixes of names of weights that never change; checkpoints leave them out.
        partly_known: whether the stage learns from crops of which some stems are known as a sum only.
        tokens_per_crop: positions that the model reads; None where it reads no tokens.
        score: name of the validation score by which the best weights are kept and exported, higher is better; None: the
            last ones are.
        flops_per_crop: floating-point operations of the networks, forward and backward; None: not counted.
    """

    networks: dict[str, nn.Module]
    frozen: tuple[str, ...] = ()
    partly_known: bool = False
    score: str | None = None
    tokens_per_crop: int | None = None
    flops_per_crop: float | None = None

    def __init__(self, training_config: TrainingConfig, config: StageConfig):
        self.training_config = training_config
        self.config = config

    def to(self, device: torch.device) -> None:  # noqa: B027 (not every stage has something to move)
        """Move what is needed besides the networks, such as a frozen tokeniser."""

    def optimizer_config(self, network: str) -> OptimizerConfig:
        """Of this network's optimiser."""
        return self.config.optimizer

    def prepare_step(self, batch: dict, step: int) -> None:  # noqa: B027 (nor starts from data)
        """Called at the start of every update, with its first batch: the place to start from data (k-means)."""

    @abstractmethod
    def step(self, batch: dict, step: int) -> Iterator[StepLoss]:
        """Losses of a batch, one per network that learns at this step. Each is sent back, and its network updated,
        before the next one is asked for."""

    @abstractmethod
    def validate(self, batch: dict) -> dict[str, torch.Tensor]:
        """Scores of a validation batch, `(B,)` each, one per crop; NaN where a score is not defined."""

    @abstractmethod
    def demonstrate(self, batch: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Decode a few crops to audio: scores `(B,)` each, and samples for the tracker, name -> waveform `(T,)` at
        48 kHz."""

    def describe(self, metrics: dict[str, torch.Tensor]) -> dict[str, float]:
        """Averaged metrics of `step` as numbers for the log."""
        return {name: value.item() for name, value in metrics.items()}

    @abstractmethod
    def export(self, directory: str | os.PathLike) -> None:
        """Write what `from_pretrained` loads. Called in one process, networks in their plain form."""
