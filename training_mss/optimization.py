"""Optimiser, learning rate, batch norms of several processes, and the moving average of the weights."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import nn

from modeling_mss.conformer_mss import BATCH_NORMS

from .configuration import OptimizerConfig


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def learning_batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """Batch norms that learn, by name. Frozen ones keep the statistics that they have."""
    norms = {name: part for name, part in module.named_modules() if isinstance(part, BATCH_NORMS)}
    return {name: norm for name, norm in norms.items() if trainable(norm)}


def synchronised(module: nn.Module, num_processes: int, device: torch.device) -> nn.Module:
    """The module with batch norms that have the statistics of all processes' crops together.

    Else each process would have its own, and those of the first would be exported. Names of weights stay.

    Raises:
        ValueError: several processes on CPUs, where torch's SyncBatchNorm does not run.
    """
    if num_processes == 1 or not learning_batch_norms(module):
        return module
    if device.type == "cpu":
        raise ValueError(
            f"{num_processes} processes on CPUs cannot share the statistics of batch norms: set conv_norm: layer_norm "
            "in the encoder_config, or train in one process."
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters. All are decayed, as in the paper's lineage."""
    return torch.optim.AdamW(
        trainable(module).values(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=torch.cuda.is_available(),
    )


def learning_rate_factor(config: OptimizerConfig, time_share: Callable[[], float]) -> Callable[[int], float]:
    """Step -> share of the learning rate: linear warm-up, then decay ** steps, not below the floor.

    Args:
        time_share: how much of the run's time has passed, 0 to 1; read where the configuration has a `final_share`.
    """

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.final_share is not None:
            return config.final_share ** time_share()
        return max(config.decay ** (step - config.warmup_steps), config.floor)

    return factor


def averaged(module: nn.Module) -> dict[str, torch.Tensor]:
    """What a moving average is kept of, by name: the weights that learn, and mean and variance of their batch norms.

    No other buffer: the codec's codebooks are a moving average already, and targets of HuBERT do not move.
    """
    statistics = {
        f"{name}.{kind}": getattr(norm, kind)
        for name, norm in learning_batch_norms(module).items()
        for kind in ("running_mean", "running_var")
    }
    return trainable(module) | statistics


# Not torch's AveragedModel: it copies the frozen codec too, averages every buffer or none, and takes twice as long.
class WeightAverage:
    """Exponential moving average of what a module learns (see `averaged`), in float32.

    Early on the average runs faster, as min(decay, (1 + n) / (10 + n)) after n updates, so that it soon forgets the
    random start.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: weight.detach().float().clone() for name, weight in averaged(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        current = [weight.detach().float() for weight in averaged(module).values()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    @contextmanager
    def in_place_of(self, module: nn.Module):
        """Inside the `with` the module has the averaged weights."""
        tensors = averaged(module)
        own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(self.weights[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(own[name])

    def state_dict(self) -> dict:
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it lacks something that is averaged, as statistics of batch norms in earlier checkpoints.
        """
        missing = sorted(self.weights.keys() - state["weights"].keys())
        if missing:
            raise ValueError(
                f"The checkpoint holds no moving average of {missing[:2]}, as earlier ones did not: start anew in "
                "another --output_dir, with --init_from the checkpoint."
            )
        self.num_updates = state["num_updates"]
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
