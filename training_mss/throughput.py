"""How fast training is, and how much of the accelerator it uses."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 peak in FLOP/s, as the vendors state it; the name is part of the device's.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A10G": 70e12,
    "L4": 121e12,
    "V100": 125e12,
}


def device_peak_flops(device: torch.device) -> float | None:
    """Peak of a known accelerator; None where it is not known, as on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def training_flops(module: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """Floating-point operations of a forward and backward pass, counted by PyTorch while it makes one.

    Weights, gradients and statistics stay as they are. Recomputation under gradient checkpointing is not counted, as is
    customary for model FLOPs utilisation.

    Args:
        module: gives an output with `.loss`.
        inputs: arguments of its `forward`.
    """
    was_training = module.training
    module.eval()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(module(**inputs).loss, [weight for weight in module.parameters() if weight.requires_grad])
    module.train(was_training)
    return float(counter.get_total_flops())
