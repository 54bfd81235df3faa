"""Artificial rooms: exponentially decaying noise after a pause, `(..., T)` waveforms of mono stems."""

from functools import cache

import torch

from .equaliser import equaliser_response, fft_length

PREDELAY_RANGE = (0.005, 0.06)  # seconds
TAIL_S = 1.3  # a longer tail is cut: with a decay of 2.5 s it is 30 dB down there, and FFTs stay at 2^18 for 4 s
CROSSOVER = 2000.0  # hertz (Hz), above which a room decays faster
HIGH_DECAY = 0.5  # of the decay below
NOISE_S = 8.0  # of noise that all impulse responses are cut from


def reverberate(
    waveforms: torch.Tensor, rooms: torch.Tensor, gains_db: torch.Tensor, sampling_rate: int
) -> torch.Tensor:
    """Direct sound and a room's answer, through an equaliser: one product in the frequency domain.

    The room was silent before the crop begins.

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
