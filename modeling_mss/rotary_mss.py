"""Rotary positions and the attention that uses them: shared by the codec's transformers and the Conformer."""

import torch
from torch import nn


def apply_rotary(hidden_states: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotate queries or keys by their positions 0, 1, 2, ... (RoFormer, in the half-split layout LLaMA uses).

    There is no buffer: the angles are recomputed in float32 at every call, so nothing can be lost when a model is
    built on the meta device.

    Args:
        hidden_states: `(batch, heads, length, head_dim)`, `head_dim` even.
        theta: base of the wavelengths, 10000 in the published models.
    """
    length, head_dim = hidden_states.shape[-2:]
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=hidden_states.device).float() / head_dim)
    angles = torch.outer(torch.arange(length, device=hidden_states.device).float(), frequencies)  # (length, dim / 2)
    cos, sin = angles.cos().to(hidden_states.dtype), angles.sin().to(hidden_states.dtype)
    first, second = hidden_states.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotary_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int, theta: float, dropout: float = 0.0
) -> torch.Tensor:
    """Bidirectional multi-head attention with rotary positions on all heads; `(batch, length, hidden)` in and out."""
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    attended = nn.functional.scaled_dot_product_attention(
        apply_rotary(query, theta), apply_rotary(key, theta), value, dropout_p=dropout
    )
    return attended.transpose(1, 2).flatten(2)
