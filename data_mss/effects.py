"""What stems and mixtures go through: an equaliser, rooms, a mix bus, and a lossy codec's imitation.

All of it works on batches, on any device, with parameters that `augmentation.py` draws.
"""

import math
from functools import cache

import torch

# The equaliser's low shelf, five peaks, high shelf; in hertz (Hz).
EQ_FREQUENCIES = (80.0, 200.0, 500.0, 1250.0, 3000.0, 7000.0, 12000.0)
EQ_QUALITY = 0.9

# Rooms.
PREDELAY_RANGE = (0.005, 0.06)  # seconds
TAIL_S = 1.3  # a longer tail is cut: with a decay of 2.5 s it is 30 dB down there, and FFTs stay at 2^18 for 4 s
CROSSOVER = 2000.0  # hertz (Hz), above which a room decays faster
HIGH_DECAY = 0.5  # of the decay below
NOISE_S = 8.0  # of noise that all impulse responses are cut from

# The mix bus.
RATIO_RANGE = (1.3, 4.0)
THRESHOLD_RANGE = (-20.0, -4.0)  # decibels, relative to the loudest 5 ms of a crop
RELEASE_RANGE = (20.0, 150.0)  # decibels a second
DRIVE_RANGE = (0.0, 1.5)  # how far the peak goes into the clipping; 1.5 is 4.4 dB off it
FRAME_S = 0.005  # a level is measured so often

# The lossy codec.
LOW_PASS_RANGE = (11000.0, 19000.0)  # hertz (Hz)
STEP_RANGE = (0.13, 0.35)  # of the rounding up to 1 kHz, relative to the RMS of a band in a frame: 25 to 17 dB
CORNER = 1000.0  # hertz (Hz), above which steps grow
GROWTH = 0.83  # as a power of the frequency: 5 dB an octave
N_FFT = 2048  # samples, about as long as the frames of mp3
BANDS_AN_OCTAVE = 3


def equalise(waveforms: torch.Tensor, gains_db: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Seven biquads in a row, applied as one product with their frequency response.

    The signal is padded by 85 ms first, more than the filters ring, so that nothing wraps around.

    Args:
        waveforms: `(..., T)`.
        gains_db: `(..., 7)`, of the bands at `EQ_FREQUENCIES`.
    """
    num_samples = waveforms.shape[-1]
    length = fft_length(num_samples + round(0.085 * sampling_rate))
    spectrum = torch.fft.rfft(waveforms, n=length) * equaliser_response(gains_db, length, sampling_rate)
    return torch.fft.irfft(spectrum, n=length)[..., :num_samples]


def equaliser_response(gains_db: torch.Tensor, length: int, sampling_rate: int) -> torch.Tensor:
    """Response of the whole equaliser at the bins of an FFT of `length` samples: `(..., 7)` -> `(..., length / 2 + 1)`.

    It is computed about every 2 Hz and interpolated: the narrowest band is 80 Hz wide, and a long FFT has bins every
    0.24 Hz. `length` must be a whole number of such steps, as `fft_length` gives it. The biquads need float64 inside:
    below 100 Hz their polynomials are small differences, and float32 was wrong by 0.7 %.
    """
    step = 2 ** max(0, math.floor(math.log2(2 * length / sampling_rate)))
    turn = torch.linspace(0, math.pi, length // 2 // step + 1, device=gains_db.device, dtype=torch.float64)
    response = torch.ones((), device=gains_db.device)
    for band, frequency in enumerate(EQ_FREQUENCIES):
        kind = "low_shelf" if band == 0 else "high_shelf" if band == len(EQ_FREQUENCIES) - 1 else "peak"
        response = response * biquad_response(kind, frequency, gains_db[..., band].double(), turn, sampling_rate)
    parts = torch.view_as_real(response).to(gains_db.dtype).movedim(-1, -2).flatten(0, -3)  # (N, 2, points)
    parts = torch.nn.functional.interpolate(parts, size=length // 2 + 1, mode="linear", align_corners=True)
    return torch.complex(parts[:, 0], parts[:, 1]).view(*gains_db.shape[:-1], -1)


def biquad_response(
    kind: str, frequency: float, gain_db: torch.Tensor, turn: torch.Tensor, sampling_rate: int
) -> torch.Tensor:
    """Frequency response of a biquad (R. Bristow-Johnson, "Cookbook formulae for audio EQ biquad filter coefficients").

    Args:
        kind: "low_shelf", "peak" or "high_shelf".
        gain_db: `(...)`.
        turn: angular frequencies `(F,)` in radians per sample.

    Returns:
        `(..., F)` complex.
    """
    amplitude = 10 ** (gain_db / 40)
    omega = 2 * math.pi * frequency / sampling_rate
    cosine, alpha = math.cos(omega), math.sin(omega) / (2 * EQ_QUALITY)
    if kind == "peak":
        b = (1 + alpha * amplitude, -2 * cosine + 0 * amplitude, 1 - alpha * amplitude)
        a = (1 + alpha / amplitude, -2 * cosine + 0 * amplitude, 1 - alpha / amplitude)
    else:
        side = 1.0 if kind == "low_shelf" else -1.0  # a high shelf mirrors the frequency axis
        plus, minus = amplitude + 1, amplitude - 1
        root = 2 * amplitude.sqrt() * alpha
        b = (
            amplitude * (plus - side * minus * cosine + root),
            side * 2 * amplitude * (minus - side * plus * cosine),
            amplitude * (plus - side * minus * cosine - root),
        )
        a = (
            plus + side * minus * cosine + root,
            -side * 2 * (minus + side * plus * cosine),
            plus + side * minus * cosine - root,
        )
    delay = torch.polar(torch.ones_like(turn), -turn)

    def polynomial(c):
        return c[0][..., None] + c[1][..., None] * delay + c[2][..., None] * delay * delay

    return polynomial(b) / polynomial(a)


def fft_length(minimum: int) -> int:
    """The next length 2^i, 3 * 2^i or 5 * 2^i: fast everywhere and close (196608 for a crop of 4 s)."""
    return min(factor * 2 ** max(0, math.ceil(math.log2(minimum / factor))) for factor in (1, 3, 5))


def reverberate(
    waveforms: torch.Tensor, rooms: torch.Tensor, gains_db: torch.Tensor, sampling_rate: int
) -> torch.Tensor:
    """Direct sound and a room's answer, through an equaliser: one product in the frequency domain.

    The answer is exponentially decaying noise after a pause. The room was silent before the crop begins.

    Args:
        waveforms: `(N, T)`.
        rooms: `(N, 4)`: level of the room's answer as a factor, seconds until it falls by 60 dB, seconds of pause
            before it, and where in the noise it begins (0-1).
        gains_db: `(N, 7)`, see `equalise`; 0 for none.
    """
    num_samples = waveforms.shape[-1]
    length = fft_length(num_samples + round(TAIL_S * sampling_rate))
    response = 1 + rooms[:, :1] * torch.fft.rfft(impulse_responses(rooms, sampling_rate), n=length)
    response *= equaliser_response(gains_db, length, sampling_rate)
    return torch.fft.irfft(response.mul_(torch.fft.rfft(waveforms, n=length)), n=length)[..., :num_samples]


def impulse_responses(rooms: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Of unit energy, without direct sound: rooms as above, `(N, 4)` -> `(N, samples of TAIL_S)`."""
    low, high = (band.to(rooms.device) for band in noise_bands(sampling_rate))
    length = round(TAIL_S * sampling_rate)
    starts = (rooms[:, 3] * (len(low) - length)).long()
    time = torch.arange(length, device=rooms.device) / sampling_rate - rooms[:, 2:3]
    envelope = torch.exp(-6.91 * time / rooms[:, 1:2]) * (time >= 0)  # 6.91: 60 dB as a factor's logarithm
    dulled = torch.exp(-6.91 * (1 / HIGH_DECAY - 1) * time / rooms[:, 1:2])
    response = (low.unfold(0, length, 1)[starts] + high.unfold(0, length, 1)[starts] * dulled) * envelope
    return response / response.square().sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-8)


@cache
def noise_bands(sampling_rate: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same white noise always, below and above the crossover; on the CPU, so that no device has another one."""
    noise = torch.randn(round(NOISE_S * sampling_rate), generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft(noise)
    frequencies = torch.linspace(0, sampling_rate / 2, len(spectrum))
    share = 1 / (1 + (frequencies / CROSSOVER) ** 4)
    low = torch.fft.irfft(spectrum * share, n=len(noise))
    return low, noise - low


def bus_gain(mixture: torch.Tensor, bus: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Gain of a compressor and a soft clipper, at most 1, independent of the level: `(B, T)` -> `(B, T)`.

    All stems share it, as behind a mixing desk: they go on to add up to the mixture.

    Args:
        bus: `(B, 4)`: ratio of input to output changes above the threshold (1: no compression), threshold in decibels
            relative to the loudest frame, release in decibels a second, drive of the clipper (0: none).
    """
    gain = compression_gain(mixture, *bus[:, :3].unbind(dim=1), sampling_rate)
    compressed = mixture * gain
    drive = bus[:, 3:]
    driven = compressed * (drive / compressed.abs().amax(dim=1, keepdim=True).clamp(min=1e-8))
    # tanh(x) / x, which float32 cannot divide near 0.
    small = driven.abs() < 1e-2
    clipping = torch.where(small, 1 - driven.square() / 3, driven.tanh() / torch.where(small, 1.0, driven))
    return gain * clipping


def compression_gain(
    mixture: torch.Tensor,
    ratio: torch.Tensor,
    threshold_db: torch.Tensor,
    release: torch.Tensor,
    sampling_rate: int,
) -> torch.Tensor:
    """Mixtures `(B, T)`, parameters `(B,)` as above -> `(B, T)`.

    Levels are those of frames; the gain falls two frames ahead of what is loud, and comes back by so many decibels a
    second.
    """
    num_samples, frame = mixture.shape[-1], round(FRAME_S * sampling_rate)
    padded = torch.nn.functional.pad(mixture, (0, -num_samples % frame))
    levels = 10 * padded.unflatten(-1, (-1, frame)).square().mean(dim=-1).clamp(min=1e-10).log10()  # (B, frames)
    over = (levels - levels.amax(dim=1, keepdim=True) - threshold_db[:, None]).clamp(min=0) * (1 - 1 / ratio[:, None])
    held = torch.nn.functional.max_pool1d(over, 5, stride=1, padding=2)
    # What is left of each earlier reduction falls along a straight line; the highest of all lines counts.
    fallen = release[:, None] * FRAME_S * torch.arange(held.shape[1], device=held.device)
    released = (held + fallen).cummax(dim=1).values - fallen
    smooth = torch.nn.functional.avg_pool1d(
        torch.nn.functional.pad(released[:, None], (1, 1), mode="replicate"), 3, stride=1
    )
    reduction = torch.nn.functional.interpolate(smooth, size=padded.shape[-1], mode="linear", align_corners=False)[:, 0]
    return torch.exp(reduction[:, :num_samples] * (-math.log(10) / 20))


def make_lossy(mixture: torch.Tensor, lossy: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Mixtures `(B, T)` as mp3 and its like leave them, imitated: the same shape, without delay.

    A low-pass, and coefficients that are rounded coarsely: what is small beside its band is rounded away, which leaves
    holes, and the rest gets noise. Real codecs take 60 to 170 ms a crop of 4 s on one thread (libopus, libmp3lame), too
    long to train through. How coarsely: fitted to the ratios of signal to noise by band that mono mp3 of 40 to
    128 kbit/s has on real mixtures (docs/data.md).

    Args:
        lossy: `(B, 2)`: the low-pass in hertz (Hz), and the step of the rounding as above.
    """
    low_pass, step = lossy.unbind(dim=1)
    window = torch.hann_window(N_FFT, device=mixture.device).sqrt()
    options = {"n_fft": N_FFT, "hop_length": N_FFT // 2, "window": window}
    spectrum = torch.stft(mixture, **options, pad_mode="constant", return_complex=True)  # (B, bins, frames)
    frequencies = torch.arange(spectrum.shape[1], device=mixture.device) * (sampling_rate / N_FFT)
    band = (BANDS_AN_OCTAVE * (frequencies / 100).clamp(min=1).log2()).long()
    members = torch.nn.functional.one_hot(band).to(mixture)  # (bins, bands); narrow ones at low frequencies are empty
    members = members / members.sum(dim=0).clamp(min=1)
    power = members.T @ (spectrum.real.square() + spectrum.imag.square())  # (B, bands, frames)
    growth = (frequencies / CORNER).clamp(min=1) ** GROWTH
    steps = power.sqrt()[:, band] * (step[:, None] * growth)[..., None]  # (B, bins, frames)
    steps = steps.clamp(min=1e-9)[..., None]
    rounded = torch.view_as_complex((torch.view_as_real(spectrum) / steps).round() * steps)
    rounded = rounded * (frequencies <= low_pass[:, None])[..., None]
    return torch.istft(rounded, **options, length=mixture.shape[-1])
