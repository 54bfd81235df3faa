"""Changes of crops beyond the paper's: levels, silence, reverberation, the sum's dynamics, lossy mixtures."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mss.augmentation import RMS_RANGE, AugmentationDraw, StemAugmentation, draw_levels
from data_mss.effects import TAIL_S, bus_gain, compression_gain, equalise, make_lossy, reverberate
from data_mss.manifest import ManifestWriter, Song
from tests.tiny import tiny_processor
from training_mss.configuration import CropConfig, load_config
from training_mss.inputs import TrainingCrops

STEMS = ["vocals", "drums", "bass", "other"]
PLAIN = {"gain_range": (1.0, 1.0), "polarity_probability": 0.0, "eq_probability": 0.0}
LEVELS = {"vocals": (-8.0, 7.0), "drums": (-3.0, 5.0), "bass": (-6.0, 6.0), "other": (-9.0, 6.0)}
ALL = {"stem_level_db": LEVELS, "silence_probability": 0.3, "reverb_probability": 0.5, "bus_probability": 0.5}
ALL["lossy_probability"] = 0.5
RATE = 48000


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decibels(waveforms: torch.Tensor) -> torch.Tensor:
    return 10 * waveforms.square().mean(dim=-1).log10()


def bursts(seed: int, batch_size: int = 3, num_samples: int = 24000) -> torch.Tensor:
    """Noise whose loudness changes, `(B, 4, T)`, so that a compressor has something to do."""
    noise = torch.randn(batch_size, 4, num_samples, generator=generator(seed))
    loudness = torch.rand(batch_size, 4, num_samples // 2400, generator=generator(seed + 1)) ** 3
    return 0.1 * noise * loudness.repeat_interleave(2400, dim=-1)


@given(start=st.integers(0, 4), stop=st.integers(5, 6), seed=st.integers(0, 10**6))
@settings(max_examples=4)
def test_a_crop_is_changed_alike_in_every_batch(start, stop, seed):
    augmentation, stems, remixed = StemAugmentation(**ALL), bursts(seed, 6, 4800), torch.arange(6) % 2 == 0
    draw = AugmentationDraw.join([augmentation.draw(1, generator(seed + crop)) for crop in range(6)])
    part = draw.rows(start, stop)
    for field in dataclasses.fields(AugmentationDraw):
        assert torch.equal(getattr(part, field.name), getattr(draw, field.name)[start:stop])
    whole = augmentation.apply(stems, draw, remixed)
    alone = augmentation.apply(stems[start:stop], part, remixed[start:stop])
    torch.testing.assert_close(alone, whole[start:stop], rtol=1e-4, atol=1e-5)  # sums of other batches round otherwise
    sent = augmentation.transmit(whole.sum(dim=1), draw)[start:stop]
    torch.testing.assert_close(augmentation.transmit(whole.sum(dim=1)[start:stop], part), sent, rtol=1e-4, atol=1e-5)


def test_off_changes_neither_crops_nor_what_is_drawn_after():
    stems, off = bursts(0), StemAugmentation(**PLAIN)
    draw = off.draw(3, generator(0))
    assert torch.equal(off.apply(stems, draw, torch.ones(3, dtype=torch.bool)), stems)
    assert off.transmit(stems[:, 0], draw).data_ptr() == stems.data_ptr()
    used, expected = generator(5), generator(5)
    StemAugmentation().draw(3, used)
    for shape in ((3, 4, 1), (3, 4, 1), (3, 4, 7), (3, 4, 1)):  # as before there were more parts than the paper's
        torch.rand(*shape, generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())


@pytest.mark.parametrize("name", ALL)
def test_switching_a_part_off_leaves_what_the_others_draw(name):
    everything = StemAugmentation(**ALL).draw(6, generator(1))
    rest = StemAugmentation(**{key: value for key, value in ALL.items() if key != name}).draw(6, generator(1))
    missing = [field.name for field in dataclasses.fields(rest) if getattr(rest, field.name) is None]
    assert missing == [{"stem_level_db": "level_db", "silence_probability": "silenced"}.get(name, name.split("_")[0])]
    for field in dataclasses.fields(rest):
        if field.name not in missing:
            assert torch.equal(getattr(rest, field.name), getattr(everything, field.name))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=4)
def test_stems_of_remixed_crops_have_the_levels_that_are_drawn(seed):
    """After equaliser and reverberation; what is silent stays so, songs keep their balance, and a sum is as loud as all
    that is in it."""
    options = {"eq_probability": 0.5, "reverb_probability": 0.5}
    augmentation = StemAugmentation(stem_level_db=LEVELS, **options)
    stems = bursts(seed) + 1e-2 * torch.randn(3, 4, 24000, generator=generator(seed))
    stems[0, 2] *= 1e-4
    draw = augmentation.draw(3, generator(seed))
    changed = augmentation.apply(stems, draw, torch.tensor([True, True, False]))
    audible = torch.tensor([[True, True, False, True], [True] * 4])
    torch.testing.assert_close(decibels(changed[:2])[audible], draw.level_db[:2][audible], atol=1e-3, rtol=0)
    known = torch.tensor([[True] * 4, [True, False, True, False], [True] * 4])
    sums = augmentation.apply(stems, draw, torch.tensor([True, True, False]), known)
    together = 10 * (10 ** (draw.level_db[1, [1, 3]] / 10)).sum().log10()
    expected = torch.stack((draw.level_db[1, 0], together, draw.level_db[1, 2], together))
    torch.testing.assert_close(decibels(sums[1:2])[0], expected, atol=1e-3, rtol=0)
    assert torch.equal(sums[0], changed[0])
    draw.level_db = None
    same = augmentation.apply(stems, draw)
    assert torch.equal(changed[0, 2], same[0, 2]) and torch.equal(changed[2], same[2])


def test_levels_are_normal_with_the_given_moments():
    level_db = StemAugmentation(stem_level_db=LEVELS).draw(4000, generator(0)).level_db
    mean, std = torch.tensor([LEVELS[stem] for stem in STEMS]).unbind(dim=1)
    torch.testing.assert_close(level_db.mean(dim=0), mean, atol=0.5, rtol=0)
    torch.testing.assert_close(level_db.std(dim=0), std, atol=0.3, rtol=0)


def test_stems_fall_silent_but_never_all_that_is_audible():
    stems = 0.1 * torch.randn(400, 4, 64, generator=generator(0))
    stems[:200, 1:] = 0  # songs of one stem
    changed = StemAugmentation(**PLAIN, silence_probability=0.4)(stems, generator(0))
    heard = changed.abs().amax(dim=-1) > 0
    assert torch.equal(heard[:200, 0], torch.ones(200, dtype=torch.bool))
    # All four fall silent at once in 0.4 ** 4 of the crops, which then keep all.
    assert heard[200:].any(dim=1).all() and 0.56 < heard[200:].float().mean() < 0.68
    assert torch.equal(changed[heard], stems[heard])


def test_a_room_answers_after_a_pause_and_leaves_the_direct_sound():
    clicks = torch.zeros(2, 96000)
    clicks[0, 100] = clicks[1, 95000] = 1.0
    room = torch.tensor([[0.25, 0.5, 0.03, 0.3]]).expand(2, 4)
    wet = reverberate(clicks, room, torch.zeros(2, 7), RATE)
    late, first = wet[0, 101:], 100 + round(0.03 * RATE)
    assert (
        wet[0, 100] == pytest.approx(1.0, abs=1e-4)
        and wet[0, : first - 1].sub(clicks[0, : first - 1]).abs().max() < 1e-4
    )
    assert late.square().sum().sqrt() == pytest.approx(0.25, rel=0.01)
    times = torch.stack([wet[0, first : first + 4800], wet[0, first + 9600 : first + 14400]])
    powers = torch.fft.rfft(times).abs().square()  # bins of 10 Hz; 0.2 s lie between
    for band, seconds in ((slice(10, 100), 0.5), (slice(500, None), 0.25)):  # high frequencies fall twice as fast
        early, later = 10 * powers[:, band].sum(dim=1).log10()
        assert early - later == pytest.approx(60 * 0.2 / seconds, rel=0.15)
    assert (wet[0, round(TAIL_S * RATE) + 101 :].abs() < 1e-4).all()
    assert wet[1, :94000].abs().max() < 1e-4  # nothing wraps around
    other = reverberate(clicks[:1], torch.tensor([[0.25, 0.5, 0.03, 0.6]]), torch.zeros(1, 7), RATE)
    assert abs(torch.corrcoef(torch.stack([other[0, 101:], late]))[0, 1]) < 0.1


def test_the_share_of_stems_that_is_drawn_is_equalised_and_in_a_room():
    stems, options = bursts(0, 4), {**PLAIN, "eq_probability": 0.5, "reverb_probability": 0.5}
    augmentation = StemAugmentation(**options)
    draw = augmentation.draw(4, generator(0))
    changed, wet = augmentation.apply(stems, draw), draw.reverb[..., 0] > 0
    equalised = draw.gains_db.any(dim=-1)
    assert all((one & other).any() for one in (wet, ~wet) for other in (equalised, ~equalised))
    both = reverberate(stems[wet], draw.reverb[wet], draw.gains_db[wet], RATE)
    torch.testing.assert_close(changed[wet], both, rtol=1e-5, atol=1e-6)
    dry = equalise(stems[equalised & ~wet], draw.gains_db[equalised & ~wet], RATE)
    torch.testing.assert_close(changed[equalised & ~wet], dry, rtol=1e-5, atol=1e-6)
    assert torch.equal(changed[~equalised & ~wet], stems[~equalised & ~wet])


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-2, 10))
@settings(max_examples=10)
def test_the_sum_is_changed_by_one_gain_for_all_stems(seed, scale):
    stems = bursts(seed)
    augmentation = StemAugmentation(**PLAIN, bus_probability=1.0)
    draw = augmentation.draw(3, generator(seed))
    changed, mixture = augmentation.apply(stems, draw), stems.sum(dim=1)
    gain = bus_gain(mixture, draw.bus, RATE)
    assert 0 < gain.min() < 0.95 and gain.max() <= 1 + 1e-6
    torch.testing.assert_close(changed, stems * gain[:, None], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(changed.sum(dim=1), mixture * gain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(augmentation.apply(scale * stems, draw), scale * changed, rtol=1e-3, atol=1e-5 * scale)


def test_the_compressor_is_the_one_run_block_by_block():
    mixture = bursts(7, 2).sum(dim=1)[:, :23900]  # no whole number of blocks
    ratio, threshold, release = torch.tensor([3.0, 1.5]), torch.tensor([-20.0, -6.0]), torch.tensor([30.0, 150.0])
    gain = compression_gain(mixture, ratio, threshold, release, RATE)
    for row in range(2):
        blocks = np.pad(mixture[row].numpy(), (0, 100)).reshape(-1, 240)
        levels = 10 * np.log10((blocks**2).mean(axis=1) + 1e-10)
        over = np.maximum(levels - levels.max() - threshold[row].item(), 0) * (1 - 1 / ratio[row].item())
        released, last = [], 0.0
        for block in range(len(over)):
            last = max(over[max(block - 2, 0) : block + 3].max(), last - release[row].item() * 0.005)
            released.append(last)
        smooth = np.convolve(np.pad(released, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
        expected = np.interp(np.arange(23900) + 0.5, 240 * np.arange(100) + 120, smooth)
        np.testing.assert_allclose(-20 * gain[row].log10().numpy(), expected, atol=1e-2)


def test_the_clipper_is_a_hyperbolic_tangent():
    mixture = bursts(3).sum(dim=1)
    peak = mixture.abs().amax(dim=1, keepdim=True)
    bus = torch.tensor([[1.0, -10.0, 50.0, 1.2]]).expand(3, 4)
    expected = (1.2 * mixture / peak).tanh() * peak / 1.2
    torch.testing.assert_close(mixture * bus_gain(mixture, bus, RATE), expected, rtol=2e-5, atol=0)


def test_a_lossy_mixture_is_aligned_duller_and_full_of_holes():
    noise = torch.randn(2, 96000, generator=generator(0))
    spectrum = torch.fft.rfft(noise)
    spectrum /= (1 + torch.linspace(0, RATE / 2, spectrum.shape[1]) / 500) ** 1.5  # dull, as music is
    mixture = torch.fft.irfft(spectrum)
    mixture = 0.1 * mixture / mixture.std()
    lossy = make_lossy(mixture, torch.tensor([[12000.0, 0.3], [18000.0, 0.15]]), RATE)
    correlation = torch.fft.irfft(torch.fft.rfft(lossy) * torch.fft.rfft(mixture).conj())
    assert correlation.argmax(dim=1).tolist() == [0, 0]
    window = torch.hann_window(2048).sqrt()
    before, after = (
        torch.stft(wave, 2048, 1024, window=window, return_complex=True).abs().square() for wave in (mixture, lossy)
    )
    hertz = torch.linspace(0, RATE / 2, 1025)
    for row, (low_pass, least, most) in enumerate(((12000, 0.02, 0.6), (18000, 0.0, 0.3))):
        above, top = hertz > low_pass + 100, (hertz > 6000) & (hertz < low_pass)
        assert after[row, above].sum() < 1e-3 * before[row, above].sum()
        holes = (after[row, top] < 0.02 * before[row, top]).float().mean()
        assert least < holes < most
    for low, high, least in ((100, 1000, (16, 22)), (4000, 8000, (5, 11))):  # signal to noise, falling with frequency
        band = (torch.linspace(0, RATE / 2, 48001) > low) & (torch.linspace(0, RATE / 2, 48001) < high)
        noise = (torch.fft.rfft(lossy) - torch.fft.rfft(mixture))[:, band].abs().square().sum(dim=1)
        ratio = 10 * (torch.fft.rfft(mixture)[:, band].abs().square().sum(dim=1) / noise).log10()
        assert ratio[0] > least[0] and ratio[1] > least[1] and ratio[1] > ratio[0] + 3


def test_levels_reach_windows_30_db_below_a_song_and_are_log_uniform():
    loudness = tiny_processor().input_rms
    levels_db = 20 * (draw_levels(4000, generator(0)) / loudness).log10()
    assert levels_db.min() < -30 and levels_db.max() > 9
    assert (levels_db < -10.5).float().mean() == pytest.approx(0.5, abs=0.03)  # half of them below the middle
    paper = load_config(Path(__file__).resolve().parents[1] / "configs" / "paper.yaml")
    assert paper.separator.crops.rms_range == CropConfig().rms_range == RMS_RANGE


def test_impossible_values_and_what_a_bank_cannot_do_are_refused():
    for options, message in (
        ({"bus_probability": 1.5}, "`bus_probability` must be in 0-1, got 1.5"),
        ({"reverb_decay_s": (0.0, 1.0)}, "`reverb_decay_s` must be 0 < low <= high"),
        ({"reverb_wet_db": (0.0, -6.0)}, "`reverb_wet_db` must be low <= high"),
        ({"stem_level_db": {"vocals": (0.0, 1.0)}}, "for each of .*'drums'.* add what is missing"),
        ({"stem_level_db": {**LEVELS, "bass": (0.0, -1.0)}}, "std >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            StemAugmentation(**options)
    for name, value in (("bus_probability", 0.1), ("lossy_probability", 0.1), ("stem_level_db", LEVELS)):
        with pytest.raises(ValueError, match=f"`{name}` must be .* bank.* input"):
            CropConfig(input="bank", remix_probability=0.5, **{name: value})
    with pytest.raises(ValueError, match="null where crops are not remixed"):
        CropConfig(stem_level_db=LEVELS)
    CropConfig(input="bank", silence_probability=0.1, reverb_probability=0.1)


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Two songs of noise at 8 kHz; the stems of each are equally loud."""
    writer = ManifestWriter(tmp_path_factory.mktemp("songs") / "manifest.jsonl")
    for number in range(2):
        stems = {stem: [str(writer.path.parent / f"{number}_{stem}.wav")] for stem in STEMS}
        for seed, stem in enumerate(STEMS):
            noise = 0.1 * np.random.default_rng(10 * number + seed).standard_normal(24000)
            soundfile.write(stems[stem][0], noise, 8000, subtype="FLOAT")
        writer.add(Song(f"song{number}", "train", stems, 3.0, 8000, "noise", licence="CC0-1.0"))
    return writer.path


@pytest.mark.parametrize("source", ["files", "device"])
def test_batches_level_what_is_remixed_and_leave_targets_clean(songs, source):
    def batch(**options) -> dict:
        config = CropConfig(crop_s=1.0, batch_size=16, input=source, remix_probability=0.5, **PLAIN, **options)
        crops = TrainingCrops(config, [str(songs)], STEMS, 8000, Accelerator(cpu=True), seed=0, num_workers=0)
        return next(crops.batches(0))

    plain, clean = batch(stem_level_db=LEVELS), batch(stem_level_db=LEVELS, bus_probability=0.5)
    levels = decibels(plain["stems"])
    remixed = (levels - levels[:, :1]).abs().amax(dim=1) > 1
    assert 3 <= remixed.sum() <= 13
    torch.testing.assert_close(clean["mixture"], clean["stems"].sum(dim=1), atol=1e-5, rtol=0)
    lossy = batch(stem_level_db=LEVELS, bus_probability=0.5, lossy_probability=0.5)
    assert torch.equal(lossy["stems"], clean["stems"])
    changed = (lossy["mixture"] - clean["mixture"]).abs().amax(dim=1) > 1e-4
    assert 3 <= changed.sum() <= 13 and torch.equal(lossy["mixture"][~changed], clean["mixture"][~changed])
