"""Residual vector quantization: the quantizer of both HCodec paths. Codebooks learn in training_mss/codebooks.py.

Shapes: B batch, D latent size, F code frames, Q codebooks (layers of the quantizer).
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

DISTANCES_AT_ONCE = 2**24  # 64 MB in float32
SWITCHES = threading.Lock()  # of torch's precision, which is the process's


def nearest_rows(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Index of the nearest of `rows` `(K, D)` in Euclidean distance; `(N, D)` -> `(N,)`, both float32.

    |x|^2 is the same for all rows and left out. Many vectors are compared in pieces, which bounds the memory.
    """
    squares = rows.square().sum(-1)
    pieces = vectors.split(max(DISTANCES_AT_ONCE // len(rows), 1))
    with _exact_products():
        return torch.cat([(squares - 2 * piece @ rows.t()).argmin(dim=-1) for piece in pieces])


@contextmanager
def _exact_products():
    """Products of float32 matrices in float32, whatever the user allows for the rest (TF32, bfloat16): neighbouring
    vectors differ in the digits that those drop."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    with SWITCHES:
        allowed = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, precision in zip(backends, allowed):
                backend.fp32_precision = precision


@dataclass
class QuantizerOutput:
    quantized: torch.Tensor  # (B, D, F); gradients pass straight through to the latents
    codes: torch.Tensor  # (B, Q, F) int64
    commitment_loss: torch.Tensor  # scalar, mean over layers


class HCodecCodebook(nn.Module):
    """One layer: the nearest of `codebook_size` vectors (`embed`) in Euclidean distance.

    The other buffers are the state of its training and stored with it: whether the vectors have been started from data
    (`initialized`), and moving averages of how often each is used (`cluster_size`) and of the sum of what it is used
    for (`embed_avg`).
    """

    def __init__(self, config):
        super().__init__()
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("cluster_size", torch.zeros(config.codebook_size))
        self.register_buffer("embed_avg", torch.zeros(config.codebook_size, config.latent_size))
        self.register_buffer("embed", torch.zeros(config.codebook_size, config.latent_size))

    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Index of the nearest entry; `(N, D)` float32 -> `(N,)`."""
        return nearest_rows(vectors, self.embed.float())


class HCodecResidualVectorQuantizer(nn.Module):
    """`num_codebooks` codebooks, each quantizing what the ones before left over."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList([HCodecCodebook(config) for _ in range(config.num_codebooks)])

    @property
    def codebooks(self) -> torch.Tensor:
        """All vectors, `(Q, codebook_size, D)`."""
        return torch.stack([layer.embed for layer in self.layers])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Sum of the vectors of the first `q` layers; `(B, q, F)`, q <= Q -> `(B, D, F)`."""
        batch, num_layers, frames = codes.shape
        codebooks = self.codebooks[:num_layers]
        offsets = torch.arange(num_layers, device=codes.device) * codebooks.shape[1]
        rows = (codes.transpose(1, 2) + offsets).reshape(-1, num_layers)
        latents = nn.functional.embedding_bag(rows, codebooks.flatten(0, 1), mode="sum")
        return latents.view(batch, frames, -1).transpose(1, 2)

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """`(B, D, F)` -> codes `(B, Q, F)`."""
        return self.forward(latents).codes

    def forward(self, latents: torch.Tensor, num_codebooks: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantize `(B, D, F)`.

        The commitment loss of a layer is the mean squared distance of its input to the chosen vector; gradients reach
        the encoder through it and straight through the quantizer (identity).

        Args:
            num_codebooks: `(B,)` int, 1 to Q: clip b becomes the sum of its first `num_codebooks[b]` layers only
                (quantizer dropout, SoundStream). Codes and commitment loss see all layers all the same.

        Raises:
            ValueError: `num_codebooks` is not one number per clip.
        """
        if num_codebooks is not None and num_codebooks.shape != (len(latents),):
            raise ValueError(f"`num_codebooks` must have shape ({len(latents)},), got {tuple(num_codebooks.shape)}.")
        batch, _, frames = latents.shape
        # Distances need float32 whatever the encoder's precision: neighbouring entries differ in the last digits.
        with torch.autocast(latents.device.type, enabled=False):
            residual = latents.transpose(1, 2).flatten(0, 1).float()
            quantized, codes, losses = torch.zeros_like(residual), [], []
            for index, layer in enumerate(self.layers):
                indices = layer.nearest(residual.detach())
                chosen = layer.embed.float()[indices]
                losses.append((residual - chosen).square().mean())
                residual = residual - chosen
                if num_codebooks is not None:
                    chosen = chosen * (num_codebooks > index).repeat_interleave(frames)[:, None]
                quantized = quantized + chosen
                codes.append(indices)
        quantized = quantized.view(batch, frames, -1).transpose(1, 2).to(latents.dtype)
        return QuantizerOutput(
            quantized=latents + (quantized - latents).detach(),
            codes=torch.stack(codes).view(-1, batch, frames).transpose(0, 1),
            commitment_loss=torch.stack(losses).mean(),
        )
