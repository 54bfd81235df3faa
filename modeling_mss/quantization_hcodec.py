"""Residual vector quantization with moving-average codebooks (the quantizer of both HCodec paths).

With several processes, everything that codebooks learn from is the vectors of all of them: N processes do what one
process would do with N times the batch, the processes' vectors in the order of their ranks.
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

DISTANCES_AT_ONCE = 2**24  # 64 MB in float32
SWITCHES = threading.Lock()  # of torch's precision, which is the process's


def process_rank_and_count() -> tuple[int, int]:
    """(0, 1) without `torch.distributed`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Replaces `tensor` by its sum over all processes, which all have to call this, and returns it."""
    if process_rank_and_count()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def _as_first_process(tensor: torch.Tensor) -> torch.Tensor:
    if process_rank_and_count()[1] > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def _rows(vectors: torch.Tensor, indices: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that this process owns, zeros elsewhere, so that the sum over processes holds all of them.

    Args:
        indices: `(...)`, over the vectors of all processes. first: index of this process's first vector.

    Returns:
        which indices are owned `(...)` bool, and rows `(..., D)`.
    """
    local = indices - first
    owned = (local >= 0) & (local < len(vectors))
    if len(vectors) == 0:
        return owned, vectors.new_zeros(*indices.shape, vectors.shape[1])
    return owned, vectors[local.clamp(0, len(vectors) - 1)] * owned[..., None]


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


def _counts_and_sums(vectors: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor, size: int) -> torch.Tensor:
    """Per code the sum of weights and the weighted sum of vectors; `(N, D)`, `(N,)`, `(N,)` -> `(size, 1 + D)`."""
    weighted = torch.cat((weights[:, None], vectors * weights[:, None]), dim=1)
    return weighted.new_zeros(size, weighted.shape[1]).index_add_(0, codes, weighted)


@torch.no_grad()
def kmeans(vectors: torch.Tensor, size: int, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """k-means of the vectors of all processes, starting from `size` of them.

    All processes have to call it, may bring different numbers of vectors, and get the same result, for which the first
    process's random state decides. Vectors that are not finite are left out. Fewer vectors than `size` are filled up
    with jittered copies; a centroid that no vector is nearest to stays where it is.

    Args:
        vectors: `(N, D)` float32.

    Returns:
        centroids `(size, D)` and the number of vectors that each is nearest to `(size,)`, float32.

    Raises:
        ValueError: no process has a finite vector.
    """
    vectors = vectors[vectors.isfinite().all(dim=-1)]
    rank, num_processes = process_rank_and_count()
    lengths = torch.zeros(num_processes, dtype=torch.long, device=vectors.device)
    lengths[rank] = len(vectors)
    lengths = sum_over_processes(lengths).tolist()
    first, total = sum(lengths[:rank]), sum(lengths)
    if total == 0:
        raise ValueError("k-means needs vectors, but there are none, or none whose values are all finite.")

    picks = torch.randperm(total, device=vectors.device)[:size]
    if total < size:
        picks = torch.cat((picks, torch.randint(total, (size - total,), device=vectors.device)))
    centroids = sum_over_processes(_rows(vectors, _as_first_process(picks), first)[1])
    if total < size:
        noise = _as_first_process(torch.randn_like(centroids[total:]))
        centroids[total:] += 0.01 * _standard_deviation(vectors) * noise

    def statistics():
        codes = nearest_rows(vectors, centroids)
        sums = sum_over_processes(_counts_and_sums(vectors, torch.ones_like(vectors[:, 0]), codes, size))
        return sums[:, 0], sums[:, 1:]

    for _ in range(iterations):
        counts, sums = statistics()
        centroids = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centroids)
    return centroids, statistics()[0]


def _standard_deviation(vectors: torch.Tensor) -> torch.Tensor:
    """Of all values of all processes; scalar."""
    total = sum_over_processes(torch.stack((vectors.new_tensor(float(vectors.numel())), vectors.sum())))
    mean = total[1] / total[0]
    return (sum_over_processes((vectors - mean).square().sum()) / total[0]).sqrt()


@dataclass
class QuantizerOutput:
    quantized: torch.Tensor  # (B, D, F), straight-through in training
    codes: torch.Tensor  # (B, Q, F) int64
    commitment_loss: torch.Tensor  # scalar, mean over layers


class HCodecCodebook(nn.Module):
    """One layer: the nearest of `codebook_size` vectors in Euclidean distance.

    In training the vectors follow the mean of what they are used for (VQ-VAE, appendix A.1), start from a k-means of
    the first batch and are revived from the batch when unused.
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
        """Index of the nearest entry; `(N, D)` float32 -> `(N,)`."""
        return nearest_rows(vectors, self.embed.float())

    @torch.no_grad()
    def start(self, vectors: torch.Tensor):
        """Entries from a k-means of the first batch; `(N, D)`."""
        centroids, counts = kmeans(vectors, len(self.embed), self.kmeans_iterations)
        self.embed.copy_(centroids)
        self.cluster_size.copy_(counts)
        self.embed_avg.copy_(centroids * counts[:, None])
        self.initialized.fill_(True)

    @torch.no_grad()
    def statistics(self, vectors: torch.Tensor, codes: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
        """What `update` needs of a batch, such that it can be summed over processes.

        Vectors that are not finite count for nothing: the training loop skips such a step, but buffers would keep it.

        Args:
            vectors: `(N, D)`, equally many in all processes. codes: `(N,)`, their entries.
            picks: `(codebook_size,)`, indices over the vectors of all processes: candidates for revival.

        Returns:
            `(codebook_size, 2 (1 + D))`: count and sum of the vectors of each entry, then whether this process has a
            candidate for it, and the candidate.
        """
        finite = vectors.isfinite().all(dim=-1)
        vectors = torch.where(finite[:, None], vectors, 0.0)
        used = _counts_and_sums(vectors, finite.to(vectors.dtype), codes, len(self.embed))
        weighted = torch.cat((finite[:, None].to(vectors.dtype), vectors), dim=1)
        return torch.cat((used, _rows(weighted, picks, process_rank_and_count()[0] * len(vectors))[1]), dim=1)

    @torch.no_grad()
    def update(self, statistics: torch.Tensor):
        """One step of the moving averages, then revival of dead entries. Nothing here waits for the device."""
        used, drawn = statistics.chunk(2, dim=1)
        counts, sums, has_candidate, candidates = used[:, 0], used[:, 1:], drawn[:, 0] > 0, drawn[:, 1:]
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.embed_avg.lerp_(sums, 1 - self.decay)
        size, total, epsilon = len(counts), self.cluster_size.sum(), 1e-5
        smoothed = (self.cluster_size + epsilon) / (total + size * epsilon) * total
        share = total / size  # an entry's moving average if all were used alike
        dead = (self.cluster_size < self.dead_code_threshold * share) & has_candidate
        self.embed.copy_(torch.where(dead[:, None], candidates, self.embed_avg / smoothed[:, None]))
        self.cluster_size.copy_(torch.where(dead, share, self.cluster_size))
        self.embed_avg.copy_(torch.where(dead[:, None], candidates * share, self.embed_avg))


class HCodecResidualVectorQuantizer(nn.Module):
    """`num_codebooks` codebooks, each quantizing what the ones before left over."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList([HCodecCodebook(config) for _ in range(config.num_codebooks)])
        # Whether all codebooks have started is read from the device once, not in each step; loading asks again.
        self.known_to_have_started = False
        self.register_load_state_dict_post_hook(_forget_whether_started)

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

    def forward(self, latents: torch.Tensor, num_codebooks: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantize `(B, D, F)`; in training mode also update the codebooks.

        The commitment loss of a layer is the mean squared distance of its input to the chosen vector; gradients reach
        the encoder through it and straight through the quantizer (identity).

        Args:
            num_codebooks: `(B,)` int, 1 to Q: clip b becomes the sum of its first `num_codebooks[b]` layers only
                (quantizer dropout, SoundStream). Codes, commitment loss and codebooks see all layers all the same.

        Raises:
            ValueError: `num_codebooks` is not one number per clip.
        """
        if num_codebooks is not None and num_codebooks.shape != (len(latents),):
            raise ValueError(f"`num_codebooks` must have shape ({len(latents)},), got {tuple(num_codebooks.shape)}.")
        quantized, codes, commitment_loss = self._quantize(latents, self.training, num_codebooks)
        return QuantizerOutput(latents + (quantized - latents).detach(), codes, commitment_loss)

    def _quantize(self, latents: torch.Tensor, update: bool, num_codebooks: torch.Tensor | None = None):
        batch, _, frames = latents.shape
        starting = update and not self._have_started()
        # Distances need float32 whatever the encoder's precision: neighbouring entries differ in the last digits.
        with torch.autocast(latents.device.type, enabled=False):
            residual = latents.transpose(1, 2).flatten(0, 1).float()
            quantized, codes, losses, statistics = torch.zeros_like(residual), [], [], []
            picks = self._picks(residual) if update else None
            for index, layer in enumerate(self.layers):
                vectors = residual.detach()
                if starting and not layer.initialized:
                    layer.start(vectors)
                indices = layer.nearest(vectors)
                chosen = layer.embed.float()[indices]
                losses.append((residual - chosen).square().mean())
                if update:
                    statistics.append(layer.statistics(vectors, indices, picks[index]))
                residual = residual - chosen
                if num_codebooks is not None:
                    chosen = chosen * (num_codebooks > index).repeat_interleave(frames)[:, None]
                quantized = quantized + chosen
                codes.append(indices)
            if update:  # at the end, so that processes meet once and not once per layer
                for layer, summed in zip(self.layers, sum_over_processes(torch.stack(statistics))):
                    layer.update(summed)
        self.known_to_have_started |= starting
        quantized = quantized.view(batch, frames, -1).transpose(1, 2).to(latents.dtype)
        codes = torch.stack(codes).view(-1, batch, frames).transpose(0, 1)
        return quantized, codes, torch.stack(losses).mean()

    def _have_started(self) -> bool:
        if not self.known_to_have_started:
            self.known_to_have_started = all(layer.initialized.item() for layer in self.layers)
        return self.known_to_have_started

    def _picks(self, vectors: torch.Tensor) -> torch.Tensor:
        """For each entry of each layer one of the vectors of all processes; `(Q, codebook_size)`."""
        shape = (len(self.layers), len(self.layers[0].embed))
        total = len(vectors) * process_rank_and_count()[1]
        return _as_first_process(torch.randint(total, shape, device=vectors.device))


def _forget_whether_started(quantizer: HCodecResidualVectorQuantizer, incompatible_keys):
    quantizer.known_to_have_started = False
