"""The Wiener filter over the mixture: masks, windows of a long song."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_mss import WindowEstimate, filter_windows, wiener_filter
from processing_mss.filtering_mss import (
    append_rest,
    combine_masks,
    fft_size,
    istft,
    power,
    ratio_masks,
    stft,
    window_weight,
)
from processing_mss.windowing_mss import WindowPlan, overlap_add, split_windows, window_starts


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def si_sdr(estimate: torch.Tensor, target: torch.Tensor) -> float:
    """In dB, over all samples."""
    projection = (estimate * target).sum() / target.square().sum() * target
    return 10 * torch.log10(projection.square().sum() / (estimate - projection).square().sum()).item()


def test_fft_is_as_long_in_seconds_at_all_rates():
    expected = {1000: 128, 8000: 1024, 22050: 2048, 44100: 4096, 48000: 4096, 96000: 8192, 192000: 16384}
    assert {rate: fft_size(rate) for rate in expected} == expected


@given(num_samples=st.integers(1, 3000), n_fft=st.sampled_from([64, 512, 4096]))
def test_istft_is_the_inverse_to_the_first_and_last_sample(num_samples, n_fft):
    waveform = noise(2, 3, num_samples, seed=num_samples)
    spectrum = stft(waveform, n_fft)
    assert spectrum.shape == (2, 3, n_fft // 2 + 1, num_samples // (n_fft // 4) + 1)
    torch.testing.assert_close(istft(spectrum, num_samples), waveform, atol=1e-5, rtol=0)


@given(
    num_samples=st.integers(1, 2000),
    num_channels=st.integers(1, 3),
    levels=st.lists(st.sampled_from([0.0, 1e-20, 1e-6, 0.1, 1e3]), min_size=1, max_size=5),
    mixture_level=st.sampled_from([0.0, 1e-7, 0.1, 10.0]),
    rest=st.booleans(),
    exponent=st.sampled_from([1.0, 1.5, 2.0]),
)
def test_stems_add_up_to_the_mixture(num_samples, num_channels, levels, mixture_level, rest, exponent):
    mixture = mixture_level * noise(num_channels, num_samples, seed=num_samples)
    estimates = torch.tensor(levels)[:, None] * noise(len(levels), num_samples, seed=num_samples + 1)
    stems = wiener_filter(estimates, mixture, rest=rest, exponent=exponent, n_fft=256)
    assert stems.shape == (len(levels) + rest, num_channels, num_samples)
    torch.testing.assert_close(stems.sum(dim=0), mixture, atol=1e-4 * max(mixture_level, 1e-3), rtol=0)


def test_silent_stems_stay_silent_and_silence_is_shared():
    stem_power = torch.tensor([[4.0, 0.0, 0.0], [1.0, 3.0, 0.0]])[..., None]
    for exponent, shares in ((2.0, (0.8, 0.2)), (1.0, (2 / 3, 1 / 3))):
        expected = torch.tensor([[shares[0], 0.0, 0.5], [shares[1], 1.0, 0.5]])[..., None]
        torch.testing.assert_close(ratio_masks(stem_power, exponent), expected)
    mixture = noise(2, 4000)
    stems = wiener_filter(torch.stack((torch.zeros(4000), mixture[0])), mixture, n_fft=256)
    assert (stems[0] == 0).all()


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_gradients_are_finite_also_in_silence(exponent):
    estimates = torch.stack((noise(2000), torch.zeros(2000))).requires_grad_()
    stems = wiener_filter(estimates, noise(1, 2000, seed=1), exponent=exponent, n_fft=256)
    (gradient,) = torch.autograd.grad(stems[0].square().sum(), estimates)
    assert gradient.isfinite().all() and gradient[0].abs().max() > 0


def test_only_magnitudes_of_estimates_count():
    mixture = noise(2, 5000)
    estimates = noise(3, 5000, seed=1)
    stems = wiener_filter(estimates, mixture, n_fft=256)
    torch.testing.assert_close(wiener_filter(-7 * estimates, mixture, n_fft=256), stems, atol=1e-5, rtol=0)


def test_four_stems_are_taken_out_of_a_stereo_mixture(four_sounds):
    pan = torch.tensor([[0.7, 0.7], [0.9, 0.5], [0.6, 0.8], [0.3, 1.0]])
    stereo = four_sounds[:, None] * pan[..., None]
    mixture = stereo.sum(dim=0)
    stems = wiener_filter(stereo.mean(dim=1), mixture)
    assert min(si_sdr(*pair) for pair in zip(stems, stereo)) > 12
    vocals, rest = wiener_filter(stereo[:1].mean(dim=1), mixture, rest=True)
    assert si_sdr(vocals, stereo[0]) > 12 and si_sdr(rest, stereo[1:].sum(dim=0)) > 12


def test_the_rest_is_what_the_mixture_has_more():
    mixture = torch.tensor([3.0, 1.0 + 0j]).view(2, 1, 1)  # power 4 in mono
    for stem, rest in ((1.0, 3.0), (9.0, 1e-10)):
        torch.testing.assert_close(append_rest(torch.full((1, 1, 1), stem), mixture).flatten()[1].item(), rest)


def test_batches_are_filtered_one_by_one():
    estimates, mixtures = noise(2, 3, 2000), noise(2, 2, 2000, seed=1)
    batch = wiener_filter(estimates, mixtures, rest=True, n_fft=256)
    for stems, estimate, mixture in zip(batch, estimates, mixtures):
        alone = wiener_filter(estimate, mixture, rest=True, n_fft=256)
        torch.testing.assert_close(stems, alone, atol=1e-5, rtol=0)


@given(num_samples=st.integers(1, 300), window=st.integers(1, 60), data=st.data())
def test_window_weights_are_those_of_overlap_add(num_samples, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    starts = window_starts(num_samples, window, overlap)
    length = max(num_samples, window)
    weights = torch.zeros(len(starts), length)
    for index, start in enumerate(starts):
        weights[index, start : start + window] = window_weight(index, starts, window, overlap)
    # Window w is one-hot in w, so the song that they make is the weight of each.
    hot = torch.eye(len(starts))[..., None].expand(-1, -1, window)
    torch.testing.assert_close(weights, overlap_add(hot, starts, overlap, length))


def heard(windows: torch.Tensor) -> list[WindowEstimate]:
    """Estimates by audio alone."""
    return [WindowEstimate(window.shape[-1], window) for window in windows]


@pytest.mark.parametrize("rest", [False, True])
def test_blocks_leave_no_trace(rest):
    num_samples = 30000  # four blocks at this rate
    estimates, mixture = noise(2, num_samples), noise(2, num_samples, seed=1)
    plan = WindowPlan([0], num_samples, 0, 0.5, num_samples, 1000)
    blocks = list(filter_windows(heard(estimates[None]), plan, 1000, (mixture / 0.5).split(777, dim=-1), rest=rest))
    assert len(blocks) == 4
    whole = wiener_filter(estimates, mixture, rest=rest, n_fft=128)
    torch.testing.assert_close(torch.cat(blocks, dim=-1) * 0.5, whole, atol=1e-5, rtol=0)


def test_powers_of_candidates_are_averaged():
    candidates, mixture = noise(3, 2, 8000), noise(1, 8000, seed=1)
    candidates[1] *= 3
    (stems,) = filter_windows(heard(candidates[None]), WindowPlan([0], 8000, 0, 1.0, 8000, 1000), 1000, [mixture])
    masks = ratio_masks(power(stft(candidates, 128)).mean(dim=0))
    torch.testing.assert_close(stems[:, 0], istft(masks * stft(mixture, 128), 8000), atol=1e-5, rtol=0)


@given(
    num_samples=st.integers(1, 30000),
    num_channels=st.integers(1, 2),
    rates=st.tuples(st.sampled_from([1000, 1470]), st.sampled_from([1000, 1103, 1600])),
    overlap=st.integers(0, 3999),
    gain=st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(max_examples=30)
def test_windows_of_any_song_add_up_to_it(num_samples, num_channels, rates, overlap, gain):
    rate, window_rate = rates
    mixture = noise(num_channels, num_samples, seed=num_samples) * 0.1 / gain
    starts = window_starts(-(-num_samples * window_rate // rate), 4000, min(overlap, 3600))
    windows = 0.1 * noise(len(starts), 3, 4000, seed=1)
    windows[::2, 1] = 0
    rest = num_samples % 2 == 0
    plan = WindowPlan(starts, 4000, min(overlap, 3600), gain, num_samples, rate)
    stems = torch.cat(list(filter_windows(heard(windows), plan, window_rate, [mixture], rest=rest)), dim=-1)
    assert stems.shape == (3 + rest, num_channels, num_samples)
    torch.testing.assert_close(stems.sum(dim=0), mixture, atol=1e-4 * 0.1 / gain, rtol=0)


@pytest.mark.parametrize("overlap", [0, 1000, 7000])
def test_windows_out_of_phase_are_as_good_as_the_song(four_sounds, overlap):
    estimates = four_sounds[:, ::4]  # 12 kHz
    starts = window_starts(48000, 9600, overlap)
    windows = split_windows(estimates, starts, 9600)
    windows[1::2] *= -1
    mixture = estimates.sum(dim=0, keepdim=True)
    (stems,) = filter_windows(heard(windows), WindowPlan(starts, 9600, overlap, 1.0, 48000, 12000), 12000, [mixture])
    whole = wiener_filter(estimates, mixture, n_fft=fft_size(12000))
    # What differs are frames at the edges of windows, which see part of one window and part of the next.
    assert min(si_sdr(*pair) for pair in zip(stems, whole)) > 20


def test_a_stem_that_tokens_leave_out_keeps_most_of_its_mask():
    masks, shares = torch.tensor([0.5, 0.5]).view(2, 1, 1), torch.tensor([1.0, 0.0]).view(2, 1, 1)
    first, second = combine_masks(masks, shares, token_share=0.5).flatten().tolist()
    assert second / first == pytest.approx(0.1**0.5) and first + second == pytest.approx(1)
