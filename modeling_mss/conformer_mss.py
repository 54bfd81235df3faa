"""The Conformer that reads the mixture: log-mel frames in, one vector per frame out.

Gulati et al. 2020 (arXiv 2005.08100) with rotary positions on all heads and no subsampling. transformers has no public
Conformer with these three properties; the pieces below are torch's.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_mss import MssEncoderConfig
from .masks_mss import MssConvStem, MssMaskHead
from .rotary_mss import rotary_attention

BATCH_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)  # the second replaces the first in training on several GPUs


class UncountedRepetition:
    """A context in which the batch norms of a module work as ever, but on copies of their statistics.

    For gradient checkpointing, which computes activations a second time: no batch is to be counted twice. Without any
    statistics (`track_running_stats`), a norm would keep other tensors for the backward pass than the first time, which
    torch refuses. A graph may be walked through more than once, and this be entered again.
    """

    def __init__(self, module: nn.Module):
        self.norms = [part for part in module.modules() if isinstance(part, BATCH_NORMS)]

    def __enter__(self):
        self.statistics = [dict(norm.named_buffers()) for norm in self.norms]
        for norm, statistics in zip(self.norms, self.statistics):
            for name, value in statistics.items():
                setattr(norm, name, value.clone())

    def __exit__(self, *error):
        for norm, statistics in zip(self.norms, self.statistics):
            for name, value in statistics.items():
                setattr(norm, name, value)


class MssFeedForward(nn.Sequential):
    def __init__(self, config: MssEncoderConfig):
        super().__init__(
            nn.LayerNorm(config.hidden_size),
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.intermediate_size, config.hidden_size),
            nn.Dropout(config.dropout),
        )


class MssSelfAttention(nn.Module):
    def __init__(self, config: MssEncoderConfig):
        super().__init__()
        self.num_heads, self.rope_theta = config.num_attention_heads, config.rope_theta
        self.norm = nn.LayerNorm(config.hidden_size)
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states):
        query, key, value = self.qkv_proj(self.norm(hidden_states)).chunk(3, dim=-1)
        return self.dropout(self.o_proj(rotary_attention(query, key, value, self.num_heads, self.rope_theta)))


class MssConvolution(nn.Module):
    """Pointwise convolution with a gate, depthwise convolution over time, norm, pointwise convolution."""

    def __init__(self, config: MssEncoderConfig):
        super().__init__()
        size, kernel_size = config.hidden_size, config.conv_kernel_size
        self.norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, 2 * size)
        self.depthwise = nn.Conv1d(size, size, kernel_size, padding=kernel_size // 2, groups=size)
        self.depthwise_norm = nn.BatchNorm1d(size) if config.conv_norm == "batch_norm" else nn.LayerNorm(size)
        self.down = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states):
        hidden_states = functional.glu(self.up(self.norm(hidden_states)))
        hidden_states = self.depthwise(hidden_states.transpose(1, 2))
        if isinstance(self.depthwise_norm, BATCH_NORMS):
            hidden_states = self.depthwise_norm(hidden_states).transpose(1, 2)
        else:
            hidden_states = self.depthwise_norm(hidden_states.transpose(1, 2))
        return self.dropout(self.down(functional.silu(hidden_states)))


class MssConformerLayer(GradientCheckpointingLayer):
    """Half feed-forward, attention, convolution, half feed-forward, norm; `(B, L, C)`."""

    def __init__(self, config: MssEncoderConfig):
        super().__init__()
        self.feed_forward1 = MssFeedForward(config)
        self.attention = MssSelfAttention(config)
        self.convolution = MssConvolution(config)
        self.feed_forward2 = MssFeedForward(config)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden_states):
        hidden_states = hidden_states + 0.5 * self.feed_forward1(hidden_states)
        hidden_states = hidden_states + self.attention(hidden_states)
        hidden_states = hidden_states + self.convolution(hidden_states)
        hidden_states = hidden_states + 0.5 * self.feed_forward2(hidden_states)
        return self.norm(hidden_states)


class MssEncoder(nn.Module):
    """Log-mel frames `(B, L, num_mel_bins)` -> frames `(B, L, hidden_size)` at the same rate (50 a second), and logits
    of masks `(B, num_masks, L, num_mel_bins)`, None without a mask head."""

    def __init__(self, config: MssEncoderConfig):
        super().__init__()
        self.conv_stem = MssConvStem(config) if config.conv_channels else None
        self.embed = nn.Linear(config.bottom_size, config.hidden_size)
        self.layers = nn.ModuleList([MssConformerLayer(config) for _ in range(config.num_hidden_layers)])
        self.mask_head = MssMaskHead(config) if config.num_masks else None

    def forward(self, input_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        planes = self.conv_stem(input_features) if self.conv_stem else []
        # The bands of all channels of a frame, (B, C, L, M) -> (B, L, C * M).
        frames = planes[-1].transpose(1, 2).flatten(2) if planes else input_features
        hidden_states = self.embed(frames)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states, self.mask_head(hidden_states, planes) if self.mask_head else None
