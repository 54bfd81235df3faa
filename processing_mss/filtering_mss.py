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

A song of any length takes the memory of one block: masks depend on one frame only, and a block is read with the margin
that makes its samples equal those of the whole song. Every window is transformed once, when it comes.

Source of ratio masks: A. Liutkus and R. Badeau, "Generalized Wiener filtering with fractional power spectrograms",
ICASSP 2015. Whoever wants to refine stems by the stereo image (expectation maximisation) finds it in the package
norbert; on our songs it was 0.2 dB better at best, and up to 0.9 dB worse (docs/separation.md).
"""

import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from .resampling_mss import resample
from .windowing_mss import BlockBuffer, WindowPlan

EPS = 1e-10  # power below which a bin is silent: 30 dB below the noise of 16 bits, for music of RMS 0.1 and FFT 4096
SHARE_FLOOR = 0.1  # of a stem in what tokens say of a bin, beside masks; measured, docs/separation.md
BLOCK_FRAMES = 256  # 6 s; longer blocks are slower on CPUs, whose caches they leave


@dataclass
class WindowEstimate:
    """What is known of the stems of one window; one of the two, or both.

    Args:
        num_samples: N, length of the window at the model's rate.
        audio: `(S, N)` mono, of which only magnitudes are used; or `(K, S, N)`, K candidates whose powers are averaged.
        masks: `(S, L, M)` on L frames that divide the window evenly and M mel bands, adding up to 1. With audio of some
            stems only, one mask more than audio has stems: that of the rest.
    """

    num_samples: int
    audio: torch.Tensor | None = None
    masks: torch.Tensor | None = None


@dataclass
class PlacedWindow:
    """A window on the time axis of its song.

    Args:
        start, length: in samples of the song.
        weight: `(N,)`, at the model's rate: how much each sample of the window counts in the song (`window_weight`).
        first_frame: of the song's STFT that the powers begin with; frame l is centred on sample l * hop.
        powers: `(S, F, L)`, weighted; None without audio.
        masks: as in `WindowEstimate`.
    """

    start: int
    length: int
    weight: torch.Tensor
    first_frame: int
    powers: torch.Tensor | None
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


def wiener_filter(
    estimates: torch.Tensor,
    mixture: torch.Tensor,
    rest: bool = False,
    exponent: float = 2.0,
    n_fft: int = 4096,
) -> torch.Tensor:
    """Stems of a mixture, from estimates of which only the magnitudes are used.

    Args:
        estimates: `(..., S, T)` mono, at the mixture's rate; with `rest` also at its level.
        mixture: `(..., C, T)`, any T from 1.
        rest: add one more stem that gets what the estimates do not explain, for estimates of some stems only.
        exponent: see `ratio_masks`.
        n_fft: see `fft_size`.

    Returns:
        `(..., S, C, T)`, or S + 1 with `rest`. The stems add up to the mixture.
    """
    spectrum = stft(mixture, n_fft)
    stem_power = power(stft(estimates, n_fft))
    if rest:
        stem_power = append_rest(stem_power, spectrum)
    masks = ratio_masks(stem_power, exponent)[..., None, :, :]  # alike for all channels
    return istft(masks * spectrum[..., None, :, :, :], mixture.shape[-1])


def combine_masks(masks: torch.Tensor, shares: torch.Tensor, token_share: float) -> torch.Tensor:
    """mask^(1 - a) * share^a, normalised over the stems, of two masks `(..., S, F, L)`; a is `token_share`.

    Shares below `SHARE_FLOOR` count as that: what is sampled once falls silent where the stem does not.
    """
    combined = masks.clamp(min=EPS) ** (1 - token_share) * shares.clamp(min=SHARE_FLOOR) ** token_share
    return combined / combined.sum(dim=-3, keepdim=True)


def filter_windows(
    windows: Iterable[WindowEstimate],
    plan: WindowPlan,
    window_rate: int,
    mixture: Iterable[torch.Tensor],
    rest: bool = False,
    token_share: float = 0.5,
) -> Iterator[torch.Tensor]:
    """Stems of a song of any length, block by block, from estimates in windows. Both are read as they are needed.

    Args:
        windows: in order, all with the same kinds of estimates; their tensors set the device.
        plan: where they begin, and the gain that brings the mixture to their level.
        window_rate: at which `plan` counts starts and overlap, in hertz (Hz).
        mixture: consecutive blocks `(C, n)` of the song at its own rate, on any device.
        rest: see `wiener_filter`.
        token_share: see `combine_masks`, where windows have both audio and masks.

    Yields:
        `(S, C, n)`, or S + 1 with `rest`: consecutive pieces of the stems, as long as the song in all. They add up to
        the mixture.
    """
    n_fft = fft_size(plan.sampling_rate)
    hop = n_fft // 4
    song = BlockBuffer(mixture)
    coming = place_windows(windows, plan, window_rate, n_fft)
    visible = deque([next(coming)])  # those that the block can see
    for begin in range(0, plan.num_samples, BLOCK_FRAMES * hop):
        end = min(begin + BLOCK_FRAMES * hop, plan.num_samples)
        # A sample is made by frames up to half an FFT away, which see samples up to as far again.
        first, last = max(begin - n_fft, 0), min(end + n_fft, plan.num_samples)
        while visible[-1].start < last and (following := next(coming, None)):
            visible.append(following)
        while visible[0].start + visible[0].length <= first:
            visible.popleft()
        seen = [window for window in visible if window.start < last]
        heard = song.read(first, last).to(seen[0].weight) * plan.gain
        spectrum = stft(heard, n_fft)
        masks = shares = None
        if seen[0].powers is not None:
            stem_power = _sum_powers(seen, first // hop, spectrum.shape[-1])
            shares = ratio_masks(append_rest(stem_power, spectrum) if rest else stem_power)
        if seen[0].masks is not None:
            centres = first + hop * torch.arange(spectrum.shape[-1], device=spectrum.device)
            masks = masks_at_bins(_blend_masks(seen, centres), window_rate, n_fft, plan.sampling_rate)
        both = masks is not None and shares is not None
        masks = combine_masks(masks, shares, token_share) if both else shares if masks is None else masks
        # The last stem is what the others leave: one inverse transform less.
        others = masks[:-1, None] * spectrum
        others = istft(others, last - first) if len(others) else heard.new_zeros(0, *heard.shape)
        stems = torch.cat((others, heard[None] - others.sum(dim=0, keepdim=True)))
        yield stems[..., begin - first : end - first] / plan.gain


def place_windows(
    windows: Iterable[WindowEstimate], plan: WindowPlan, window_rate: int, n_fft: int
) -> Iterator[PlacedWindow]:
    """Windows where they stand in the song; powers of their audio add up to the blended power."""
    hop = n_fft // 4
    for index, (window_start, window) in enumerate(zip(plan.starts, windows)):
        tensor = window.masks if window.audio is None else window.audio
        weight = window_weight(index, plan.starts, window.num_samples, plan.overlap).to(tensor)
        start, powers = round(window_start * plan.sampling_rate / window_rate), None
        if window.audio is not None:
            audio = resample(window.audio * weight.sqrt(), window_rate, plan.sampling_rate)
            # Frames that are centred up to half an FFT outside see the window as well.
            padded = torch.nn.functional.pad(audio, (n_fft // 2 + start % hop, n_fft // 2))
            powers = power(stft(padded, n_fft))
            powers = powers.reshape(-1, *powers.shape[-3:]).mean(dim=0)  # over candidates
        length = -(-window.num_samples * plan.sampling_rate // window_rate)
        yield PlacedWindow(start, length, weight, start // hop - 2, powers, window.masks)  # half an FFT is two hops


def _sum_powers(windows: list[PlacedWindow], first_frame: int, num_frames: int) -> torch.Tensor:
    """Powers `(S, F, L)` of windows, added up on the L frames of the song from `first_frame` on."""
    total = windows[0].powers.new_zeros(*windows[0].powers.shape[:2], num_frames)
    for window in windows:
        shift = window.first_frame - first_frame
        begin, end = max(shift, 0), min(shift + window.powers.shape[-1], num_frames)
        total[..., begin:end] += window.powers[..., begin - shift : end - shift]
    return total


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


@functools.lru_cache(maxsize=8)
def band_matrix(num_mel_bins: int, mel_rate: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """`(num_mel_bins, n_fft / 2 + 1)`: weights of the bands of `log_mel_spectrogram` at `mel_rate` in each bin of an
    STFT at `sampling_rate`, both in hertz (Hz); those of a bin add up to 1."""
    highest = 2595 * torch.log10(torch.tensor(1 + mel_rate / 2 / 700, dtype=torch.float64))
    mels = torch.linspace(0, 1, num_mel_bins + 2, dtype=torch.float64)[1:-1] * highest  # HTK, as the extractor's
    centres = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sampling_rate / n_fft
    upper = torch.searchsorted(centres, bins).clamp(1, num_mel_bins - 1)
    share = ((bins - centres[upper - 1]) / (centres[upper] - centres[upper - 1])).clamp(0, 1)
    columns = torch.arange(len(bins))
    matrix = torch.zeros(num_mel_bins, len(bins), dtype=torch.float64)
    matrix[upper - 1, columns] = 1 - share
    matrix[upper, columns] += share
    return matrix.float()


def masks_at_frames(masks: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`(..., L, M)` -> `(..., N, M)` at positions `(N,)`, in frames: 0.5 is the middle between the first two.

    Masks are smooth, so they are interpolated linearly, here and between bands; beyond the first and the last centre
    they are held. Interpolated masks add up to 1 as those they come from do.
    """
    last = masks.shape[-2] - 1
    positions = positions.clamp(0, last)
    lower = positions.floor().long().clamp(max=max(last - 1, 0))
    share = (positions - lower).to(masks)[:, None]
    return torch.lerp(masks[..., lower, :], masks[..., (lower + 1).clamp(max=last), :], share)


def masks_at_bins(masks: torch.Tensor, mel_rate: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """`(..., N, M)` -> `(..., n_fft / 2 + 1, N)`, as STFTs have their axes; `band_matrix` says what the rest is."""
    matrix = band_matrix(masks.shape[-1], mel_rate, n_fft, sampling_rate).to(masks)
    return (masks @ matrix).transpose(-1, -2)
