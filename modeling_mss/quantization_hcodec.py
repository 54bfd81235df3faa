"""Residual vector quantization with moving-average codebooks (the quantizer of both HCodec paths)."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


def _across_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@dataclass
class QuantizerOutput:
    quantized: torch.Tensor  # (B, D, F), straight-through in training
    codes: torch.Tensor  # (B, Q, F) int64
    commitment_loss: torch.Tensor  # scalar, mean over layers


class HCodecCodebook(nn.Module):
    """One layer: the nearest of `codebook_size` vectors in Euclidean distance.

    In training the vectors follow the mean of what they are used for (VQ-VAE, appendix A.1), start from a k-means of
    the first batch and are revived from the batch when unused. With several processes all of them see all statistics,
    so that the codebooks stay equal.
    """

    def __init__(self, config):
        super().__init__()
        self.decay = config.codebook_decay
        self.kmeans_iterations = config.kmeans_iterations
        self.dead_code_threshold = config.dead_code_threshold
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("cluster_size", torch.zeros(config.codebook_size))
        self.register_buffer("embed_avg", torch.zeros(config.codebook_size, config.latent_size))
        self.register_buffer("embed", torch.zeros(config.codebook_size, config.latent_size))

    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Index of the nearest entry; `(N, D)` float32 -> `(N,)`. |x|^2 is the same for all entries and left out."""
        embed = self.embed.float()
        return (embed.square().sum(-1) - 2 * vectors @ embed.t()).argmin(dim=-1)

    @torch.no_grad()
    def start(self, vectors: torch.Tensor):
        """k-means of the first batch; a batch smaller than the codebook is filled up with jittered copies."""
        size = self.embed.shape[0]
        picks = torch.randperm(len(vectors), device=vectors.device)[:size]
        if len(vectors) < size:
            extra = torch.randint(len(vectors), (size - len(vectors),), device=vectors.device)
            jitter = 0.01 * vectors.std() * torch.randn(len(extra), vectors.shape[1], device=vectors.device)
            self.embed.copy_(torch.cat((vectors[picks], vectors[extra] + jitter)))
        else:
            self.embed.copy_(vectors[picks])
        for _ in range(self.kmeans_iterations):
            counts, sums = self._statistics(vectors, self.nearest(vectors))
            self.embed.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), self.embed))
        counts, _ = self._statistics(vectors, self.nearest(vectors))
        self.cluster_size.copy_(counts)
        if _across_processes():
            dist.broadcast(self.embed, src=0)
            dist.broadcast(self.cluster_size, src=0)
        self.embed_avg.copy_(self.embed * self.cluster_size[:, None])
        self.initialized.fill_(True)

    @torch.no_grad()
    def update(self, vectors: torch.Tensor, codes: torch.Tensor):
        """One step of the moving averages, then revival of dead entries."""
        counts, sums = self._statistics(vectors, codes)
        if _across_processes():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.embed_avg.lerp_(sums, 1 - self.decay)
        size, total, epsilon = len(counts), self.cluster_size.sum(), 1e-5
        smoothed = (self.cluster_size + epsilon) / (total + size * epsilon) * total
        self.embed.copy_(self.embed_avg / smoothed[:, None])

        share = total / size  # an entry's moving average if all were used alike
        dead = self.cluster_size < self.dead_code_threshold * share
        candidates = vectors[torch.randint(len(vectors), (size,), device=vectors.device)]
        if _across_processes():
            dist.broadcast(candidates, src=0)
        self.embed.copy_(torch.where(dead[:, None], candidates, self.embed))
        self.cluster_size.copy_(torch.where(dead, share, self.cluster_size))
        self.embed_avg.copy_(torch.where(dead[:, None], candidates * share, self.embed_avg))

    def _statistics(self, vectors: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts = torch.zeros_like(self.cluster_size).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
        return counts, torch.zeros_like(self.embed_avg).index_add_(0, codes, vectors)


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
        return self._quantize(latents, update=False)[1]

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize `(B, D, F)`; in training mode also update the codebooks.

        The commitment loss of a layer is the mean squared distance of its input to the chosen vector; gradients reach
        the encoder through it and straight through the quantizer (identity).
        """
        quantized, codes, commitment_loss = self._quantize(latents, update=self.training)
        return QuantizerOutput(latents + (quantized - latents).detach(), codes, commitment_loss)

    def _quantize(self, latents: torch.Tensor, update: bool):
        batch, _, frames = latents.shape
        # Distances need float32 whatever the encoder's precision: neighbouring entries differ in the last digits.
        with torch.autocast(latents.device.type, enabled=False):
            residual = latents.transpose(1, 2).flatten(0, 1).float()
            quantized, codes, losses = torch.zeros_like(residual), [], []
            for layer in self.layers:
                if update and not layer.initialized:
                    layer.start(residual.detach())
                indices = layer.nearest(residual.detach())
                chosen = layer.embed.float()[indices]
                losses.append((residual - chosen).square().mean())
                if update:
                    layer.update(residual.detach(), indices)
                residual = residual - chosen
                quantized = quantized + chosen
                codes.append(indices)
        quantized = quantized.view(batch, frames, -1).transpose(1, 2).to(latents.dtype)
        codes = torch.stack(codes).view(-1, batch, frames).transpose(0, 1)
        return quantized, codes, torch.stack(losses).mean()
