"""A seven-band equaliser, as one product with its frequency response."""

import math

import torch

# Low shelf, five peaks, high shelf; in hertz (Hz).
EQ_FREQUENCIES = (80.0, 200.0, 500.0, 1250.0, 3000.0, 7000.0, 12000.0)
EQ_QUALITY = 0.9


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
