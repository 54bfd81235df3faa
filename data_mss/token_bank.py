"""Encoded crops that are mixed freely and renewed slowly, so that the frozen codec stays out of the inner loop.

Targets and augmentation are per stem: the codes of a stem hold in every mixture that it is part of.
"""

from collections.abc import Callable

import torch

FULL_SCALE = 4.0  # of the stored int16: stems of a crop at RMS 0.3 go beyond 1. One step is 1.2e-4, noise at -89 dBFS


class TokenBank:
    """A window over an endless row of crops, with their codes, on the device.

    At step k it holds crops k * refresh ... k * refresh + size - 1, crop c in slot c % size: what it holds depends on
    the step alone, and a resumed run gets it back by `fill`. Codes are those of the encoder in batches of up to `chunk`
    crops: an encoder whose rounding depends on the batch size gives the same codes only if `chunk` equals `refresh`.

    Args:
        read_crops: indices -> a mapping with `stems` `(N, S, T)` float on the device, augmented and levelled, each by
            its index alone; `known` `(N, S)` and `estimated` `(N,)` bool (see `StemDataset.labels`).
        encode: stems `(N, S, T)` -> codes `(N, S, 2F, Q)`, below 32768.
        size: crops held; 2 bytes a sample and a code each (1.5 MB for four stems of 4 s).
        refresh: crops replaced at every step, the oldest first.
        remix_probability: share of a batch's crops whose stems come from different entries. Their codes hold at the
            stems' levels only, so that the mixture's level is what they add up to.
        chunk: crops read and encoded at once.
        index_offset, index_stride: crop c is index `index_offset + index_stride * c`: the number of this process and
            that of all, for disjoint crops.

    Raises:
        ValueError: impossible values.
    """

    def __init__(
        self,
        read_crops: Callable[[list[int]], dict[str, torch.Tensor]],
        encode: Callable[[torch.Tensor], torch.Tensor],
        size: int,
        refresh: int,
        remix_probability: float = 0.5,
        chunk: int = 16,
        index_offset: int = 0,
        index_stride: int = 1,
    ):
        if not (0 <= refresh <= size and size > 0 and chunk > 0 and 0 <= remix_probability <= 1):
            raise ValueError(
                "Need 0 <= refresh <= size, size > 0, chunk > 0, 0 <= remix_probability <= 1, "
                f"got {refresh=}, {size=}, {chunk=}, {remix_probability=}."
            )
        if not 0 <= index_offset < index_stride:
            raise ValueError(f"Need 0 <= index_offset < index_stride, got {index_offset} and {index_stride}.")
        self.read_crops = read_crops
        self.encode = encode
        self.size = size
        self.refresh = refresh
        self.remix_probability = remix_probability
        self.chunk = chunk
        self.index_offset = index_offset
        self.index_stride = index_stride
        self._held = range(0)  # crops in the bank
        self._waveforms = self._codes = None  # (size, S, T) and (size, S, 2F, Q), int16
        self._known = self._estimated = None  # (size, S) and (size,) bool, on the CPU

    @torch.no_grad()
    def fill(self, step: int):
        """Make the bank hold what it holds at `step`, by reading and encoding the crops that it does not hold yet."""
        window = range(step * self.refresh, step * self.refresh + self.size)
        goes_on = self._held.start <= window.start
        first = max(window.start, self._held.stop) if goes_on else window.start
        self._held = range(0)  # a run stopped in the middle leaves a bank that fills itself again
        for start in range(first, window.stop, self.chunk):
            self._put(range(start, min(start + self.chunk, window.stop)))
        self._held = window

    def _put(self, crops: range):
        read = self.read_crops([self.index_offset + self.index_stride * crop for crop in crops])
        stems = read["stems"]
        codes = self.encode(stems)
        if self._waveforms is None:
            self._waveforms = stems.new_zeros(self.size, *stems.shape[1:], dtype=torch.int16)
            self._codes = codes.new_zeros(self.size, *codes.shape[1:], dtype=torch.int16)
            self._known = torch.ones(self.size, stems.shape[1], dtype=torch.bool)
            self._estimated = torch.zeros(self.size, dtype=torch.bool)
        slots = [crop % self.size for crop in crops]
        samples = (stems * (32768 / FULL_SCALE)).round().clamp(-32768, 32767)
        self._waveforms[slots] = samples.to(torch.int16)
        self._codes[slots] = codes.to(torch.int16)
        self._known[slots] = read["known"].cpu()
        self._estimated[slots] = read["estimated"].cpu()

    def batch(self, step: int, batch_size: int, generator: torch.Generator | None = None) -> dict:
        """Crops of the bank as it is at `step`.

        Args:
            generator: of the choice, on the CPU.

        Returns:
            `mixture` `(B, T)` and `stems` `(B, S, T)` float32, `audio_codes` `(B, S, 2F, Q)` int64; `known` `(B, S)`
            bool: unknown are all stems of a sum that is heard in the crop; `estimated` `(B,)` bool, of remixed crops
            False.
        """
        self.fill(step)
        num_stems = self._waveforms.shape[1]
        entries = torch.randint(self.size, (batch_size, num_stems), generator=generator)
        remixed = torch.rand(batch_size, 1, generator=generator) < self.remix_probability
        entries = torch.where(remixed, entries, entries[:, :1])
        rows = (entries * num_stems + torch.arange(num_stems)).flatten().to(self._waveforms.device)
        stems = self._waveforms.flatten(0, 1).index_select(0, rows).float().mul_(FULL_SCALE / 32768)
        stems = stems.unflatten(0, (batch_size, num_stems))
        codes = self._codes.flatten(0, 1).index_select(0, rows).long().unflatten(0, (batch_size, num_stems))
        unknown = ~self._known[entries]  # (B, S, S): of the entry that gave each stem, which stems are part of a sum
        last = unknown & (unknown.flip(2).cumsum(dim=2).flip(2) == 1)  # the one that holds the sum; others are silent
        in_sums = (unknown & last.diagonal(dim1=1, dim2=2)[..., None]).any(dim=1)
        estimated = self._estimated[entries[:, 0]] & ~remixed[:, 0]
        mixture = stems.sum(dim=1)
        return {"mixture": mixture, "stems": stems, "audio_codes": codes, "known": ~in_sums, "estimated": estimated}
