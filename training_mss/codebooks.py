"""How the codec's codebooks learn: k-means at the start, moving averages, and new life for entries nobody uses.

With several processes, everything that codebooks learn from is the vectors of all of them: N processes do what one
process would do with N times the batch, the processes' vectors in the order of their ranks.
"""

import torch
import torch.distributed as dist

from modeling_mss import HCodecConfig
from modeling_mss.quantization_hcodec import (
    HCodecCodebook,
    HCodecResidualVectorQuantizer,
    QuantizerOutput,
    nearest_rows,
)


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


class CodebookTraining:
    """Lets the codebooks of a quantizer learn whenever it is called in training mode (VQ-VAE, appendix A.1).

    The vectors start from a k-means of the first batch, then follow the mean of what they are used for; those that are
    hardly used are replaced by vectors of the batch. Forward hooks do it: every call of the quantizer in training mode
    updates the codebooks, `encode` and evaluation mode never do.

    Args:
        config: its `codebook_decay`, `kmeans_iterations` and `dead_code_threshold` count here.
    """

    def __init__(self, quantizer: HCodecResidualVectorQuantizer, config: HCodecConfig):
        self.quantizer, self.config = quantizer, config
        # Whether all codebooks have started is read from the device once, not in each step; loading asks again.
        self.known_to_have_started = False
        quantizer.register_forward_pre_hook(self._before)
        quantizer.register_forward_hook(self._after)
        quantizer.register_load_state_dict_post_hook(self._forget_whether_started)

    @torch.no_grad()
    def _before(self, quantizer: HCodecResidualVectorQuantizer, inputs: tuple) -> None:
        if not quantizer.training:
            return
        vectors = _vectors(inputs[0])
        shape = (len(quantizer.layers), self.config.codebook_size)
        total = len(vectors) * process_rank_and_count()[1]
        # For each entry of each layer one of the vectors of all processes.
        self.picks = _as_first_process(torch.randint(total, shape, device=vectors.device))
        if self._have_started():
            return
        with torch.autocast(vectors.device.type, enabled=False):
            for layer in quantizer.layers:
                if not layer.initialized:
                    self._start(layer, vectors)
                vectors = vectors - layer.embed.float()[layer.nearest(vectors)]
        self.known_to_have_started = True

    @torch.no_grad()
    def _after(self, quantizer: HCodecResidualVectorQuantizer, inputs: tuple, output: QuantizerOutput) -> None:
        if not quantizer.training:
            return
        vectors, statistics = _vectors(inputs[0]), []
        with torch.autocast(vectors.device.type, enabled=False):
            for layer, codes, picks in zip(quantizer.layers, output.codes.transpose(0, 1).flatten(1), self.picks):
                statistics.append(self._statistics(vectors, codes, picks))
                vectors = vectors - layer.embed.float()[codes]
            # At the end, so that processes meet once and not once per layer.
            for layer, summed in zip(quantizer.layers, sum_over_processes(torch.stack(statistics))):
                self._update(layer, summed)

    def _have_started(self) -> bool:
        if not self.known_to_have_started:
            self.known_to_have_started = all(layer.initialized.item() for layer in self.quantizer.layers)
        return self.known_to_have_started

    def _forget_whether_started(self, quantizer, incompatible_keys) -> None:
        self.known_to_have_started = False

    def _start(self, layer: HCodecCodebook, vectors: torch.Tensor) -> None:
        """Entries from a k-means of the first batch; `(N, D)`."""
        centroids, counts = kmeans(vectors, len(layer.embed), self.config.kmeans_iterations)
        layer.embed.copy_(centroids)
        layer.cluster_size.copy_(counts)
        layer.embed_avg.copy_(centroids * counts[:, None])
        layer.initialized.fill_(True)

    def _statistics(self, vectors: torch.Tensor, codes: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
        """What `_update` needs of a batch, such that it can be summed over processes.

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
        used = _counts_and_sums(vectors, finite.to(vectors.dtype), codes, len(picks))
        weighted = torch.cat((finite[:, None].to(vectors.dtype), vectors), dim=1)
        return torch.cat((used, _rows(weighted, picks, process_rank_and_count()[0] * len(vectors))[1]), dim=1)

    def _update(self, layer: HCodecCodebook, statistics: torch.Tensor) -> None:
        """One step of the moving averages, then revival of dead entries. Nothing here waits for the device."""
        used, drawn = statistics.chunk(2, dim=1)
        counts, sums, has_candidate, candidates = used[:, 0], used[:, 1:], drawn[:, 0] > 0, drawn[:, 1:]
        layer.cluster_size.lerp_(counts, 1 - self.config.codebook_decay)
        layer.embed_avg.lerp_(sums, 1 - self.config.codebook_decay)
        size, total, epsilon = len(counts), layer.cluster_size.sum(), 1e-5
        smoothed = (layer.cluster_size + epsilon) / (total + size * epsilon) * total
        share = total / size  # an entry's moving average if all were used alike
        dead = (layer.cluster_size < self.config.dead_code_threshold * share) & has_candidate
        layer.embed.copy_(torch.where(dead[:, None], candidates, layer.embed_avg / smoothed[:, None]))
        layer.cluster_size.copy_(torch.where(dead, share, layer.cluster_size))
        layer.embed_avg.copy_(torch.where(dead[:, None], candidates * share, layer.embed_avg))


def _vectors(latents: torch.Tensor) -> torch.Tensor:
    """`(B, D, F)` -> what the first layer quantizes, `(B F, D)` float32."""
    return latents.detach().transpose(1, 2).flatten(0, 1).float()
