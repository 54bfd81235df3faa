"""Augmentation of section 3.1: gain, polarity and a seven-band equaliser per stem, then one level for the crop.

Everything works on batches `(B, S, T)` on any device; the order is stems first, sum and tokenisation afterwards.
"""

import math
from dataclasses import dataclass, field

import torch

# Low shelf, five peaks, high shelf; in hertz (Hz).
EQ_FREQUENCIES = (80.0, 200.0, 500.0, 1250.0, 3000.0, 7000.0, 12000.0)
EQ_QUALITY = 0.9


@dataclass
class AugmentationDraw:
    """How each stem of a batch is changed; on the CPU.

    Args:
        gain: signed factors `(B, S, 1)`.
        gains_db: of the equaliser's bands, in decibels, `(B, S, 7)`; 0 where there is none.
    """

    gain: torch.Tensor
    gains_db: torch.Tensor

    def rows(self, start: int, stop: int) -> "AugmentationDraw":
        """That of crops `start` to `stop`: a process's part of a batch."""
        return AugmentationDraw(self.gain[start:stop], self.gains_db[start:stop])

    @staticmethod
    def join(draws: "list[AugmentationDraw]") -> "AugmentationDraw":
        """Several one after the other, where every crop has a generator of its own."""
        gain = torch.cat([draw.gain for draw in draws])
        return AugmentationDraw(gain, torch.cat([draw.gains_db for draw in draws]))


@dataclass
class StemAugmentation:
    """Random changes of stems, independent of each other.

    Drawing is apart from applying: what is drawn, always on the CPU, depends neither on the device nor on how processes
    divide a batch. It is off with `gain_range=(1.0, 1.0), polarity_probability=0.0, eq_probability=0.0`.

    Args:
        stems: names of the axis S.
        gain_range: factors, uniform (the paper's 0.5 to 1.5).
        polarity_probability: share of stems that are inverted (the paper's 10 %).
        eq_gain_db: largest boost or cut of a band in decibels, per stem, uniform. The paper says "track-dependent" and
            gives no numbers; drums and bass bear less before they stop sounding like themselves. 0: no EQ.
        eq_probability: share of stems that are equalised.
        sampling_rate: in hertz (Hz).
    """

    stems: tuple[str, ...] | list[str] = ("vocals", "drums", "bass", "other")
    gain_range: tuple[float, float] = (0.5, 1.5)
    polarity_probability: float = 0.1
    eq_gain_db: dict[str, float] = field(
        default_factory=lambda: {"vocals": 6.0, "drums": 4.0, "bass": 3.0, "other": 6.0}
    )
    eq_probability: float = 0.5
    sampling_rate: int = 48000

    def __call__(self, stems: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """`(B, S, T)` on any device -> the same shape. `generator` is on the CPU."""
        return self.apply(stems, self.draw(len(stems), generator))

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> AugmentationDraw:
        """Choose how a batch is changed. `generator` is on the CPU."""
        num_stems = len(self.stems)

        def uniform(*shape):
            return torch.rand(*shape, generator=generator)

        low, high = self.gain_range
        gain = low + (high - low) * uniform(batch_size, num_stems, 1)
        sign = torch.where(uniform(batch_size, num_stems, 1) < self.polarity_probability, -1.0, 1.0)
        limit = torch.tensor([self.eq_gain_db.get(stem, 6.0) for stem in self.stems])
        gains_db = (2 * uniform(batch_size, num_stems, len(EQ_FREQUENCIES)) - 1) * limit[:, None]
        equalised = uniform(batch_size, num_stems, 1) < self.eq_probability
        return AugmentationDraw(gain * sign, gains_db * equalised)

    def apply(self, stems: torch.Tensor, draw: AugmentationDraw) -> torch.Tensor:
        """Change `(B, S, T)`, on any device, as drawn.

        Raises:
            ValueError: drawn for another batch size or number of stems.
        """
        if draw.gain.shape[:2] != stems.shape[:2]:
            raise ValueError(
                f"Drawn for (batch, stems) = {tuple(draw.gain.shape[:2])}, got stems of {tuple(stems.shape[:2])}: "
                "draw for their batch size, or take its part with `rows`."
            )
        changed = stems * draw.gain.to(stems.device)
        # Stems without EQ, half of them, are spared the FFT. They are found on the CPU: no device is waited for.
        rows = draw.gains_db.any(dim=-1).nonzero(as_tuple=True)
        if len(rows[0]):
            crop, stem = (axis.to(stems.device) for axis in rows)
            gains_db = draw.gains_db[rows].to(stems.device)
            changed[crop, stem] = equalise(changed[crop, stem], gains_db, self.sampling_rate)
        return changed


def equalise(waveforms: torch.Tensor, gains_db: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Seven biquads in a row, applied as one product with their frequency response.

    The signal is padded by 85 ms first, more than the filters ring, so that nothing wraps around.

    Args:
        waveforms: `(..., T)`.
        gains_db: `(..., 7)`, of the bands at `EQ_FREQUENCIES`.
    """
    num_samples = waveforms.shape[-1]
    length = _fft_length(num_samples + round(0.085 * sampling_rate))
    spectrum = torch.fft.rfft(waveforms, n=length) * equaliser_response(gains_db, length, sampling_rate)
    return torch.fft.irfft(spectrum, n=length)[..., :num_samples]


def equaliser_response(gains_db: torch.Tensor, length: int, sampling_rate: int) -> torch.Tensor:
    """Response of the whole equaliser at the bins of an FFT of `length` samples: `(..., 7)` -> `(..., length / 2 + 1)`.

    It is computed about every 2 Hz and interpolated: the narrowest band is 80 Hz wide, and a long FFT has bins every
    0.24 Hz. `length` must be a whole number of such steps, as `_fft_length` gives it. The biquads need float64 inside:
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


def _fft_length(minimum: int) -> int:
    """The next length 2^i, 3 * 2^i or 5 * 2^i: fast everywhere and close (196608 for a crop of 4 s)."""
    return min(factor * 2 ** max(0, math.ceil(math.log2(minimum / factor))) for factor in (1, 3, 5))


def random_level(
    stems: torch.Tensor, generator: torch.Generator | None = None, rms_range: tuple[float, float] = (0.03, 0.3)
) -> torch.Tensor:
    """Scale each crop `(B, S, T)`, all stems alike, so that its mixture's RMS is log-uniform in `rms_range`.

    The input-gain rule of training (DESIGN, section 1). `generator` is on the CPU.
    """
    return set_level(stems, draw_levels(len(stems), generator, rms_range))


def draw_levels(
    batch_size: int, generator: torch.Generator | None = None, rms_range: tuple[float, float] = (0.03, 0.3)
) -> torch.Tensor:
    """RMS values, log-uniform in `rms_range`: `(B,)` on the CPU, where `generator` is too."""
    low, high = (math.log(value) for value in rms_range)
    return (low + (high - low) * torch.rand(batch_size, generator=generator)).exp()


def set_level(stems: torch.Tensor, target_rms: torch.Tensor) -> torch.Tensor:
    """Scale each crop `(B, S, T)`, all stems alike, to its mixture's `target_rms` `(B,)`; silent ones stay."""
    rms = stems.sum(dim=1).square().mean(dim=-1).sqrt()  # (B,)
    factor = torch.where(rms > 1e-8, target_rms.to(rms) / rms.clamp(min=1e-8), torch.ones_like(rms))
    return stems * factor[:, None, None]
