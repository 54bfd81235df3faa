"""What can be expected at least and at most: systems that know the true stems, or nothing at all.

- mixture: the mixture as estimate of every stem; a separator that is worse should not have run.
- equal_shares: the mixture in equal parts, one for each stem; a separator that is not better has not separated.
- codec: the true stems through the codec, which is all that a language model over its codes can generate.
- codec_filtered: the Wiener filter driven by those: the most of the output "filtered" without masks.
- ideal_ratio_mask: the same filter driven by the true stems themselves, about what any mask of power might reach.
- reference: the true stems, the row "ground truth" of tables of listening scores.
"""

from collections.abc import Callable

import torch

from processing_mss import WindowEstimate, filter_windows, wiener_filter
from processing_mss.filtering_mss import BLOCK_FRAMES, fft_size
from processing_mss.windowing_mss import WindowPlan

from .roundtrip import CodecRoundTrip, mixture_gain
from .songs import EvaluationSong


class Bound:
    """A system whose estimates of all stems are a function of the song, the true stems included.

    Args:
        name, identity, generative: see `System`.
        estimate: song -> `(S, C, T)`; C is the song's, or 1.
    """

    def __init__(
        self, name: str, identity: str, estimate: Callable[[EvaluationSong], torch.Tensor], generative: bool = False
    ):
        self.name, self.identity, self.generative = name, identity, generative
        self._estimate = estimate

    def separate(self, song: EvaluationSong) -> dict[str, torch.Tensor]:
        """See `System`."""
        return dict(zip(song.stems, self._estimate(song)))


def estimate_mixture(song: EvaluationSong) -> torch.Tensor:
    return song.mixture.expand_as(song.references)


def estimate_equal_shares(song: EvaluationSong) -> torch.Tensor:
    """Parts that add up to the mixture, as filtered stems do, and know nothing of it."""
    return estimate_mixture(song) / len(song.references)


def estimate_references(song: EvaluationSong) -> torch.Tensor:
    return song.references


def estimate_codec(song: EvaluationSong, roundtrip: CodecRoundTrip) -> torch.Tensor:
    """Mono."""
    return roundtrip(song.references, song.sampling_rate, mixture_gain(song.mixture))[:, None]


def estimate_codec_filtered(song: EvaluationSong, roundtrip: CodecRoundTrip) -> torch.Tensor:
    """As the pipeline does: windows meet as power spectra, not as waveforms."""
    gain, num_samples = mixture_gain(song.mixture), song.mixture.shape[-1]
    windows = roundtrip.windows(song.references, song.sampling_rate, gain)
    starts = roundtrip.starts(num_samples, song.sampling_rate)
    plan = WindowPlan(starts, roundtrip.window, roundtrip.overlap, gain, num_samples, song.sampling_rate)
    estimates = (WindowEstimate(len(window[0]), window) for window in windows)
    return torch.cat(list(filter_windows(estimates, plan, roundtrip.rate, [song.mixture])), dim=-1)


def estimate_ideal_ratio_mask(song: EvaluationSong) -> torch.Tensor:
    """One mask for all channels, from the mono mix of each stem: what the pipeline's filter would do.

    In chunks, since the spectra of a whole song are gigabytes; their margin makes the samples those of the whole.
    """
    gain, num_samples, n_fft = mixture_gain(song.mixture), song.mixture.shape[-1], fft_size(song.sampling_rate)
    stems, chunk, filtered = song.references.mean(dim=1), BLOCK_FRAMES * n_fft // 4, []
    for begin in range(0, num_samples, chunk):
        first, last = max(begin - n_fft, 0), min(begin + chunk + n_fft, num_samples)
        piece = wiener_filter(stems[:, first:last] * gain, song.mixture[:, first:last] * gain, n_fft=n_fft)
        filtered.append(piece[..., begin - first : begin - first + chunk] / gain)
    return torch.cat(filtered, dim=-1)


FREE_BOUNDS = {  # name -> where the estimates come from, and how
    "mixture": ("the mixture", estimate_mixture),
    "equal_shares": ("the mixture", estimate_equal_shares),
    "ideal_ratio_mask": ("from the true stems", estimate_ideal_ratio_mask),
    "reference": ("from the true stems", estimate_references),
}
CODEC_BOUNDS = {"codec": estimate_codec, "codec_filtered": estimate_codec_filtered}
BOUNDS = ("mixture", "equal_shares", "codec", "codec_filtered", "ideal_ratio_mask", "reference")


def load_bound(name: str, codec_path: str | None = None, device: torch.device | str | None = None) -> Bound:
    """A bound by name, one of `BOUNDS`.

    Args:
        codec_path, device: see `CodecRoundTrip`; those that need no codec do without.

    Raises:
        ValueError: an unknown bound, or one that needs a codec and got none; and what `CodecRoundTrip` raises.
    """
    if name in FREE_BOUNDS:
        return Bound(name, *FREE_BOUNDS[name])
    if name not in CODEC_BOUNDS:
        raise ValueError(f"The bound must be one of {list(BOUNDS)}, got {name!r}.")
    if codec_path is None:
        raise ValueError(f"The bound {name!r} needs a whole codec: give its folder.")
    roundtrip = CodecRoundTrip(codec_path, device)
    return Bound(
        name,
        roundtrip.identity,
        lambda song: CODEC_BOUNDS[name](song, roundtrip),
        generative=name == "codec",
    )
