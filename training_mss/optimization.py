"""Optimiser, learning rate, and the moving average of the weights."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import nn

from .configuration import OptimizerConfig


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters. All are decayed, as in the paper's lineage."""
    return torch.optim.AdamW(
        trainable(module).values(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=torch.cuda.is_available(),
    )


def learning_rate_factor(config: OptimizerConfig) -> Callable[[int], float]:
    """Step -> share of the learning rate: linear warm-up, then decay ** steps, not below the floor."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        return max(config.decay ** (step - config.warmup_steps), config.floor)

    return factor


class WeightAverage:
    """Exponential moving average of the trainable weights of a module, in float32.

    Early on the average runs faster, as min(decay, (1 + n) / (10 + n)) after n updates, so that it soon forgets the
    random start.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: weight.detach().float().clone() for name, weight in trainable(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        current = [weight.detach().float() for weight in trainable(module).values()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    @contextmanager
    def in_place_of(self, module: nn.Module):
        """Inside the block the module has the averaged weights."""
        parameters = trainable(module)
        own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.weights[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict:
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.num_updates = state["num_updates"]
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
