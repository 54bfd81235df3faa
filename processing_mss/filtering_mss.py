"""Stems cut out of the original mixture, by masks of the encoder, by generated stems as spectral estimates, or by both.

The codec's waveforms are mono and their phase is not the stem's, so only their power spectra are used: they say which
share of every time-frequency bin of the mixture belongs to which stem. What comes out has the mixture's phase,
channels, rate and length, and the stems add up to the mixture.

Songs come in windows at the model's rate (48 kHz), and waveforms of two windows must not be added: their phases
differ. `filter_windows` multiplies every window by the square root of its weight in `overlap_add`, resamples it to the
mixture's rate, takes its power spectrum on the song's own grid of frames (frame l is centred on sample l * hop of the
mixture), and adds up powers. So powers are blended with the weights of `overlap_add`, sample by sample, without a
special case at the ends of windows; whatever a frame loses there, all stems lose alike.

Masks of the encoder lie on mel bands and frames of their windows. They are interpolated to the song's frames, blended
with the same weights, and then interpolated to the bins. Both together are mask^(1 - a) * share^a, normalised.

A song of any length takes the memory of one block: ratio masks depend on one frame only, and a block is read with the
margin that makes its samples equal those of the whole song. The spatial covariances of expectation maximisation are
those of a block of 6 s; open-unmix takes them from 7 s (`wiener_win_len` of its `Separator`).

Sources: A. Liutkus and R. Badeau, "Generalized Wiener filtering with fractional power spectrograms", ICASSP 2015 (ratio
masks); A. Nugraha, A. Liutkus and E. Vincent, "Multichannel music separation with deep neural networks", EUSIPCO 2016
(expectation maximisation, as in the packages norbert and openunmix).
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from .masking_mss import masks_at_bins, masks_at_frames
from .resampling_mss import resample
from .windowing_mss import BlockBuffer

EPS = 1e-10  # power below which a bin is silent: 30 dB below the noise of 16 bits, for music of RMS 0.1 and FFT 4096
BLOCK_FRAMES = 256  # 6 s; longer blocks are slower on CPUs, whose caches they leave


@dataclass
class WindowEstimate:
    """What is known of the stems of one window; one of the two, or both.

    Args:
        num_samples: N, length of the window at the model's rate.
        audio: `(S, N)` mono, of which only magnitudes are used; or `(D, S, N)`, D draws whose powers are averaged.
        masks: `(S, L, M)` on L frames that divide the window evenly and M mel bands, adding up to 1. With audio of some
            stems only, one mask more than audio has stems: that of the rest.
    """

    num_samples: int
    audio: torch.Tensor | None = None
    masks: torch.Tensor | None = None


@dataclass
class PlacedWindow:
    """A window on the song's own time axis: `start` and `length` in samples of the song, `audio` resampled and
    weighted; `weight` `(N,)` and `masks` as they were."""

    start: int
    length: int
    weight: torch.Tensor
    audio: torch.Tensor | None
    masks: torch.Tensor | None


def fft_size(sampling_rate: int) -> int:
    """FFT size for a rate in hertz (Hz): 4096 at 44.1 and 48 kHz, at other rates the power of two next to as long."""
    return 2 ** round(math.log2(sampling_rate * 4096 / 44100))


def stft(waveform: torch.Tensor, n_fft: int) -> torch.Tensor:
    """`(..., T)` -> complex `(..., n_fft / 2 + 1, T // hop + 1)`: Hann, hop `n_fft / 4`, zeros around the song."""
    window = torch.hann_window(n_fft, dtype=waveform.dtype, device=waveform.device)
    signals = waveform.reshape(-1, waveform.shape[-1])
    spectrum = torch.stft(signals, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True)
    return spectrum.view(*waveform.shape[:-1], *spectrum.shape[-2:])


def istft(spectrum: torch.Tensor, num_samples: int) -> torch.Tensor:
    """The inverse of `stft`: `(..., F, L)` -> `(..., num_samples)`."""
    n_fft = 2 * (spectrum.shape[-2] - 1)
    window = torch.hann_window(n_fft, dtype=spectrum.real.dtype, device=spectrum.device)
    signals = torch.istft(spectrum.flatten(0, -3), n_fft, n_fft // 4, window=window, length=num_samples)
    return signals.view(*spectrum.shape[:-2], num_samples)


def power(spectrum: torch.Tensor) -> torch.Tensor:
    """Squared magnitude, with a gradient at zero."""
    return spectrum.real.square() + spectrum.imag.square()


def append_rest(stem_power: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    """One more stem for all that has no estimate: what the stems leave of the power of the mono mixture.

    Args:
        stem_power: `(..., S, F, L)`, at the level of the mixture.
        mixture: complex `(..., C, F, L)`.

    Returns:
        `(..., S + 1, F, L)`.
    """
    rest = power(mixture.mean(dim=-3, keepdim=True)) - stem_power.sum(dim=-3, keepdim=True)
    return torch.cat((stem_power, rest.clamp(min=EPS)), dim=-3)


def ratio_masks(stem_power: torch.Tensor, exponent: float = 2.0) -> torch.Tensor:
    """Share of each stem in every bin.

    Masks add up to 1. A stem that is silent in a bin gets 0, unless all are silent: then all get the same.

    Args:
        stem_power: `(..., S, F, L)`.
        exponent: of the magnitudes; 2 is the Wiener filter, 1 the ratio of magnitudes.

    Returns:
        `(..., S, F, L)`, differentiable.
    """
    # The clamp keeps gradients finite: the slope of a root is infinite at 0, and torch.where would not hide it.
    shares = torch.where(stem_power > EPS, stem_power.clamp(min=EPS) ** (exponent / 2), 0)
    total = shares.sum(dim=-3, keepdim=True)
    return torch.where(total > 0, shares / total.clamp(min=EPS ** (exponent / 2)), 1 / stem_power.shape[-3])


def expectation_maximisation(stems: torch.Tensor, mixture: torch.Tensor, iterations: int) -> torch.Tensor:
    """Refine stems by where they stand in the stereo image.

    Every stem is Gaussian with a power per bin and frame, and a spatial covariance per bin that is constant over the
    frames given; both are taken from the stems so far, and the multichannel Wiener filter with them gives better ones.

    Args:
        stems: complex `(..., S, C, F, L)`, estimates that add up to the mixture.
        mixture: complex `(..., C, F, L)`, one or two channels.
        iterations: at least 1.

    Returns:
        Complex `(..., S, C, F, L)`. They add up to the mixture.

    Raises:
        ValueError: more than two channels.
    """
    num_channels = mixture.shape[-3]
    if num_channels > 2:
        raise ValueError(f"Expectation maximisation is for one or two channels, got {num_channels}: use ratio masks.")
    # Relative to the power in the bin, unlike the constant of norbert and openunmix: the mixture needs no scaling, and
    # the determinant for two equal channels stays above zero in float32, where a constant that is lost beside the power
    # ends in NaN.
    regularisation = torch.finfo(mixture.real.dtype).eps ** 0.5
    for _ in range(iterations):
        stem_power = power(stems).mean(dim=-3)  # (..., S, F, L)
        covariance = torch.einsum("...scfl,...sdfl->...sfcd", stems, stems.conj())
        covariance = covariance / (stem_power.sum(dim=-1)[..., None, None] + EPS)
        model = torch.einsum("...sfl,...sfcd->...cdfl", stem_power.to(stems.dtype), covariance)
        floor = regularisation * stem_power.sum(dim=-3) + EPS
        whitened = _solve(model, floor, mixture)
        stems = stem_power[..., None, :, :] * torch.einsum("...sfcd,...dfl->...scfl", covariance, whitened)
    missing = mixture - stems.sum(dim=-4)  # what the floor took, and all of it where all stems are silent
    return stems + ratio_masks(stem_power)[..., None, :, :] * missing[..., None, :, :, :]


def _solve(matrix: torch.Tensor, floor: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Hermitian `(..., C, C, F, L)` with `floor` `(..., F, L)` on its diagonal, and `(..., C, F, L)` -> solutions.

    Written out for C of 1 and 2: batched solvers are far slower, and wrong with two threads in torch 2.13 on CPUs.
    """
    first = matrix[..., 0, 0, :, :].real + floor
    if vector.shape[-3] == 1:
        return vector / first[..., None, :, :]
    second = matrix[..., 1, 1, :, :].real + floor
    cross = matrix[..., 0, 1, :, :]
    left, right = vector.unbind(dim=-3)
    solution = torch.stack((second * left - cross * right, first * right - cross.conj() * left), dim=-3)
    return solution / (first * second - power(cross))[..., None, :, :]


def wiener_filter(
    estimates: torch.Tensor,
    mixture: torch.Tensor,
    rest: bool = False,
    exponent: float = 2.0,
    iterations: int = 0,
    n_fft: int = 4096,
) -> torch.Tensor:
    """Stems of a mixture, from estimates of which only the magnitudes are used.

    Args:
        estimates: `(..., S, T)` mono, at the mixture's rate; with `rest` also at its level.
        mixture: `(..., C, T)`, any T from 1.
        rest: add one more stem that gets what the estimates do not explain, for estimates of some stems only.
        exponent: see `ratio_masks`.
        iterations: of `expectation_maximisation`; 0 for ratio masks, alike for all channels.
        n_fft: see `fft_size`.

    Returns:
        `(..., S, C, T)`, or S + 1 with `rest`. The stems add up to the mixture.
    """
    spectrum = stft(mixture, n_fft)
    stem_power = power(stft(estimates, n_fft))
    if rest:
        stem_power = append_rest(stem_power, spectrum)
    return istft(_apply(ratio_masks(stem_power, exponent), spectrum, iterations), mixture.shape[-1])


def _apply(masks: torch.Tensor, mixture: torch.Tensor, iterations: int) -> torch.Tensor:
    """Masks `(..., S, F, L)`, mixture `(..., C, F, L)` -> stems `(..., S, C, F, L)`."""
    stems = masks[..., None, :, :] * mixture[..., None, :, :, :]
    return expectation_maximisation(stems, mixture, iterations) if iterations else stems


def combine_masks(masks: torch.Tensor, shares: torch.Tensor, token_share: float) -> torch.Tensor:
    """mask^(1 - a) * share^a, normalised over the stems, of two masks `(..., S, F, L)`; a is `token_share`."""
    combined = masks.clamp(min=EPS) ** (1 - token_share) * shares.clamp(min=EPS) ** token_share
    return combined / combined.sum(dim=-3, keepdim=True)


def filter_windows(
    windows: Iterable[WindowEstimate],
    window_starts: list[int],
    overlap_samples: int,
    gain: float,
    window_rate: int,
    mixture: Iterable[torch.Tensor],
    num_samples: int,
    sampling_rate: int,
    rest: bool = False,
    exponent: float = 2.0,
    iterations: int = 0,
    token_share: float = 0.5,
) -> Iterator[torch.Tensor]:
    """Stems of a song of any length, block by block, from estimates in windows. Both are read as they are needed.

    Args:
        windows: in order, all with the same kinds of estimates; their tensors set the device.
        window_starts, overlap_samples: at `window_rate`, as for `overlap_add`.
        gain: factor that brings the mixture to the level of the windows.
        window_rate: in hertz (Hz).
        mixture: consecutive blocks `(C, n)` at `sampling_rate`, on any device.
        num_samples: T, the length of the mixture.
        sampling_rate: in hertz (Hz).
        rest, exponent, iterations: see `wiener_filter`.
        token_share: see `combine_masks`, where windows have both audio and masks.

    Yields:
        `(S, C, n)`, or S + 1 with `rest`: consecutive pieces of the stems, T samples in all. They add up to the
        mixture.
    """
    n_fft = fft_size(sampling_rate)
    block = BLOCK_FRAMES * n_fft // 4
    song = BlockBuffer(mixture)
    coming = place_windows(windows, window_starts, overlap_samples, window_rate, sampling_rate)
    visible = deque([next(coming)])  # those that the block can see
    for begin in range(0, num_samples, block):
        end = min(begin + block, num_samples)
        # A sample is made by frames up to half an FFT away, which see samples up to as far again.
        first, last = max(begin - n_fft, 0), min(end + n_fft, num_samples)
        while visible[-1].start < last and (following := next(coming, None)):
            visible.append(following)
        while visible[0].start + visible[0].length <= first:
            visible.popleft()
        seen = [window for window in visible if window.start < last]
        heard = song.read(first, last).to(seen[0].weight) * gain
        spectrum = stft(heard, n_fft)
        masks = shares = None
        if seen[0].audio is not None:
            stem_power = spectrum.real.new_zeros(seen[0].audio.shape[-2], *spectrum.shape[-2:])
            for window in seen:
                _add_power(stem_power, window.audio, window.start - first, n_fft)
            shares = ratio_masks(append_rest(stem_power, spectrum) if rest else stem_power, exponent)
        if seen[0].masks is not None:
            frames = first + torch.arange(spectrum.shape[-1], device=spectrum.device) * (n_fft // 4)
            masks = masks_at_bins(_blend_masks(seen, frames), window_rate, n_fft, sampling_rate)
        both = masks is not None and shares is not None
        masks = combine_masks(masks, shares, token_share) if both else shares if masks is None else masks
        if iterations:
            stems = istft(_apply(masks, spectrum, iterations), last - first)
        else:  # the last stem is what the others leave: one inverse transform less
            others = masks[:-1, None] * spectrum
            others = istft(others, last - first) if len(others) else heard.new_zeros(0, *heard.shape)
            stems = torch.cat((others, heard[None] - others.sum(dim=0, keepdim=True)))
        yield stems[..., begin - first : end - first] / gain


def place_windows(
    windows: Iterable[WindowEstimate],
    window_starts: list[int],
    overlap_samples: int,
    window_rate: int,
    sampling_rate: int,
) -> Iterator[PlacedWindow]:
    """Windows where they stand in the song; powers of their audio add up to the blended power."""
    for index, (start, window) in enumerate(zip(window_starts, windows)):
        tensor = window.masks if window.audio is None else window.audio
        weight = window_weight(index, window_starts, window.num_samples, overlap_samples).to(tensor)
        audio = window.audio
        if audio is not None:
            audio = resample(audio * weight.sqrt(), window_rate, sampling_rate)
        yield PlacedWindow(
            start=round(start * sampling_rate / window_rate),
            length=-(-window.num_samples * sampling_rate // window_rate),
            weight=weight,
            audio=audio,
            masks=window.masks,
        )


def _blend_masks(windows: list[PlacedWindow], frames: torch.Tensor) -> torch.Tensor:
    """Masks `(S, N, M)` at frames that are centred on these samples of the song `(N,)`.

    A frame that no window covers, as the last one of a song may be, has the masks of the nearest window.
    """
    total = weights = 0
    for window in windows:
        places = (frames - window.start).float() / window.length  # 0 to 1 along the window
        samples = (places * len(window.weight)).long().clamp(0, len(window.weight) - 1)
        # Beyond a window it counts only where no other one does, and the less the farther away it is.
        beyond = (places - places.clamp(0, 1)).abs()
        inside = (places >= 0) & (places < 1)
        weight = (torch.where(inside, window.weight[samples], 0) + 1e-6 * (-100 * beyond).exp())[:, None]
        total = total + weight * masks_at_frames(window.masks, places * window.masks.shape[-2] - 0.5)
        weights = weights + weight
    return total / weights


def window_weight(index: int, starts: list[int], window: int, overlap: int) -> torch.Tensor:
    """Weight `(window,)` that `overlap_add` gives to the samples of one window; those of all windows add up to 1."""

    def fade_in(after: int) -> torch.Tensor:
        """Of the window that follows window `after`, along the samples of window `index`."""
        seam = starts[after] + window - overlap - starts[index]
        return ((torch.arange(window) - seam + 0.5) / max(overlap, 0.5)).clamp(0, 1)  # 0.5: a step, without overlap

    weight = fade_in(index - 1) if index else torch.ones(window)
    for later in range(index, len(starts) - 1):
        if starts[later] - overlap >= starts[index]:
            break
        weight = weight * (1 - fade_in(later))
    return weight


def _add_power(stem_power: torch.Tensor, estimates: torch.Tensor, start: int, n_fft: int) -> None:
    """Add the power of `(S, n)`, or the mean of `(D, S, n)`, that begins `start` samples (also negative) after frame 0
    to `(S, F, L)`.
    """
    hop = n_fft // 4
    # Frames that are centred up to half an FFT outside see the estimates as well.
    padded = torch.nn.functional.pad(estimates, (n_fft // 2 + start % hop, n_fft // 2))
    first = start // hop - 2  # half an FFT is two hops
    added = power(stft(padded, n_fft))
    added = added.reshape(-1, *stem_power.shape[:2], added.shape[-1]).mean(dim=0)
    begin, end = max(first, 0), min(first + added.shape[-1], stem_power.shape[-1])
    stem_power[..., begin:end] += added[..., begin - first : end - first]
