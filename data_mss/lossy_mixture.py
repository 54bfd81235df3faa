"""What mp3 and its like leave of a mixture, imitated: a low-pass, and coefficients that are rounded coarsely.

Real ones take 60 to 170 ms a crop of 4 s on one thread (libopus, libmp3lame), too long to train through. What is small
beside its band is rounded away, which leaves holes, and the rest gets noise. How coarsely: fitted to the ratios of
signal to noise by band that mono mp3 of 40 to 128 kbit/s has on real mixtures (docs/data.md).
"""

import torch

LOW_PASS_RANGE = (11000.0, 19000.0)  # hertz (Hz)
STEP_RANGE = (0.13, 0.35)  # of the rounding up to 1 kHz, relative to the RMS of a band in a frame: 25 to 17 dB
CORNER = 1000.0  # hertz (Hz), above which steps grow
GROWTH = 0.83  # as a power of the frequency: 5 dB an octave
N_FFT = 2048  # samples, about as long as the blocks of mp3
BANDS_AN_OCTAVE = 3


def make_lossy(mixture: torch.Tensor, lossy: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Mixtures `(B, T)` -> the same shape, without delay.

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
