"""Stage `peer`: a discriminative separator on the same crops, for tables that compare it with the language model.

BS-RoFormer (package BS-RoFormer) or HTDemucs (package demucs), mono at 48 kHz, from the mixture to all stems at once.
Each learns by the loss of its own reference, and is exported in the format that its users have: what `load_teacher` and
`mss-lm evaluate --baseline` read.
"""

import copy
import inspect
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from data_mss.labelling.bs_roformer import build_bs_roformer
from data_mss.scores import si_sdr, usdr

from .configuration import PeerStageConfig, TrainingConfig
from .stage import Stage, StepLoss, samples_of, scores_by_stem, unwrapped

PEER = "peer"
SAMPLING_RATE = 48000


class PeerStage(Stage):
    """Mixtures in, waveforms of their stems out.

    Raises:
        ValueError: arguments that the network does not have or that the stage sets, or gradient checkpointing.
        ImportError: the network's package is missing.
    """

    config: PeerStageConfig

    def __init__(self, training_config: TrainingConfig):
        super().__init__(training_config, training_config.peer)
        if self.config.gradient_checkpointing:
            raise ValueError("Peers have no `gradient_checkpointing`: set peer.gradient_checkpointing to false.")
        self.stems = training_config.stems
        self.num_samples = round(self.config.crops.crop_s * SAMPLING_RATE)
        self.architecture = self.config.model.architecture
        self.arguments = self._arguments()
        model = _bs_roformer(self.arguments) if self.architecture == "bs_roformer" else _htdemucs(self.arguments)
        self.networks: dict[str, nn.Module] = {PEER: model}

    def _arguments(self) -> dict:
        """Of the network: the configuration's, and what this stage is about."""
        if self.architecture == "bs_roformer":
            given, fixed = self.config.model.bs_roformer, {"stereo": False, "num_stems": len(self.stems)}
        else:
            given = self.config.model.htdemucs
            segment = Fraction(self.num_samples, SAMPLING_RATE)  # of songs too; exact, as samples are counted from it
            fixed = {"sources": self.stems, "audio_channels": 1, "samplerate": SAMPLING_RATE, "segment": segment}
        if clash := sorted(given.keys() & fixed.keys()):
            raise ValueError(f"peer.model.{self.architecture} must leave out {clash}: the stage sets {sorted(fixed)}.")
        return {**given, **fixed}

    @property
    def model(self) -> nn.Module:
        """The network in its plain form."""
        return unwrapped(self.networks[PEER])

    def losses(self, model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        """Scalars, "loss" first: what is sent back."""
        mixture, stems = batch["mixture"][:, None], batch["stems"][:, :, None]  # (B, 1, T), (B, S, 1, T)
        if self.architecture == "htdemucs":
            return {"loss": functional.l1_loss(model(mixture), stems)}
        loss, (waveform, stft) = model(mixture, target=stems, return_loss_breakdown=True)
        return {"loss": loss, "waveform": waveform, "stft": stft}

    def step(self, batch: dict, step: int) -> Iterator[StepLoss]:
        losses = self.losses(self.networks[PEER], batch)
        yield StepLoss(PEER, losses["loss"], {name: loss.detach() for name, loss in losses.items()})

    def separate(self, mixture: torch.Tensor) -> torch.Tensor:
        """Mixtures `(B, T)` -> stems `(B, S, T)`."""
        stems = self.model(mixture[:, None]).squeeze(2)
        # BS-RoFormer's inverse STFT gives whole hops only.
        return functional.pad(stems, (0, mixture.shape[-1] - stems.shape[-1]))

    def validate(self, batch: dict) -> dict[str, torch.Tensor]:
        """Losses, and `usdr` and `si_sdr` in dB, of all stems together and of each."""
        references = batch["stems"]
        ones = torch.ones(len(references), device=references.device)
        scores = {name: loss * ones for name, loss in self.losses(self.model, batch).items()}
        estimates = self.separate(batch["mixture"])
        for name, score in (("usdr", usdr), ("si_sdr", si_sdr)):
            scores |= scores_by_stem(name, score(estimates, references), self.stems)
        return scores

    def demonstrate(self, batch: dict) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Samples alone: `validate` has scored all crops already."""
        estimate = self.separate(batch["mixture"][:1])
        return {}, samples_of(self.stems, batch["mixture"], reference=batch["stems"], estimate=estimate)

    def export(self, directory: str | os.PathLike) -> None:
        """`htdemucs.safetensors`, or `bs_roformer.ckpt` and `bs_roformer.yaml`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = {name: weight.cpu().contiguous() for name, weight in self.model.state_dict().items()}
        if self.architecture == "htdemucs":
            segment = self.arguments["segment"]
            fraction = {"_type": "fraction", "numerator": segment.numerator, "denominator": segment.denominator}
            arguments = json.dumps({**self.arguments, "segment": fraction})
            metadata = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": arguments}
            save_file(state, directory / "htdemucs.safetensors", metadata=metadata)
            return
        settings = {
            "audio": {"chunk_size": self.num_samples, "sample_rate": SAMPLING_RATE},
            "model": self.arguments,
            "training": {"instruments": self.stems},
            "inference": {"num_overlap": 2, "batch_size": 1},
        }
        torch.save(state, directory / "bs_roformer.ckpt")
        (directory / "bs_roformer.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _bs_roformer(arguments: dict) -> nn.Module:
    """The network as the teacher of the same name builds it: with one residual stream, as those that are published."""
    if missing := sorted({"dim", "depth"} - arguments.keys()):
        raise ValueError(f"peer.model.bs_roformer must say {missing}, got {sorted(arguments)}.")
    model = build_bs_roformer(arguments)
    for module in model.modules():
        if hasattr(module, "rotary_embed"):  # one for all layers, but safetensors refuses weights that are shared
            module.rotary_embed = copy.deepcopy(module.rotary_embed)
    for estimator in model.mask_estimators:
        estimator.register_forward_hook(_in_float32)
    return model


def _in_float32(module: nn.Module, inputs: tuple, mask: torch.Tensor) -> torch.Tensor:
    """Masks become complex numbers next, which bfloat16 has not."""
    return mask.float()


def _htdemucs(arguments: dict) -> nn.Module:
    try:
        from demucs.htdemucs import HTDemucs
    except ImportError as error:
        raise ImportError(f"The peer 'htdemucs' needs the package demucs: pip install demucs ({error}).") from error
    allowed = inspect.signature(HTDemucs).parameters.keys()
    if unknown := sorted(arguments.keys() - allowed):
        raise ValueError(f"Unknown {unknown} in peer.model.htdemucs; allowed are {sorted(allowed)}.")
    return HTDemucs(**arguments)
