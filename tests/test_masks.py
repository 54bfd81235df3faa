"""Masks: of the encoder, on the bins of a song, as outputs of the pipeline, and told to the language model."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_mss import MssConfig
from processing_mss import (
    AudioSourceSeparationPipeline,
    WindowEstimate,
    filter_windows,
    log_mel_spectrogram,
    mel_power_spectrogram,
    resample,
)
from processing_mss.filtering_mss import band_matrix, masks_at_frames
from processing_mss.windowing_mss import WindowPlan, split_windows, window_starts
from tests.tiny import masked_options, tiny_config, tiny_model, tiny_processor

STEMS = ["vocals", "drums", "bass", "other"]


@pytest.fixture(scope="module")
def model():
    """With weights so large that masks differ from equal shares."""
    model = tiny_model(**masked_options())
    for parameter in model.encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


@pytest.fixture(scope="module")
def pipe(model):
    return AudioSourceSeparationPipeline(model=model, processor=tiny_processor(model.config))


def features(num_frames: int = 20, batch: int = 2) -> torch.Tensor:
    return 2 * torch.randn(batch, num_frames, 120, generator=torch.Generator().manual_seed(1)) - 1


def song(num_samples: int = 60000, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, (channels, num_samples)).astype(np.float32)


@given(num_frames=st.integers(1, 40), options=st.sampled_from([{}, {"conv_channels": None}, {"conv_channels": [8]}]))
@settings(max_examples=12)
def test_masks_share_every_bin_of_any_length_among_the_stems(num_frames, options):
    model = tiny_model(**masked_options(**options))
    masks = model.masks(features(num_frames))
    assert masks.shape == (2, 4, num_frames, 120) and masks.min() >= 0
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(2, num_frames, 120))


def test_temperature_softens_masks_and_changes_neither_loss_nor_codes(model):
    hot = tiny_model(**masked_options(), mask_temperature=2.0)
    hot.load_state_dict(model.state_dict())
    sharp, soft = model.masks(features()), hot.masks(features())
    expected = sharp.sqrt() / sharp.sqrt().sum(dim=1, keepdim=True)
    torch.testing.assert_close(soft, expected)
    powers = torch.rand(2, 4, 20, 120)
    with torch.no_grad():
        losses = [m(input_features=features(), stem_powers=powers).loss for m in (model, hot)]
        codes = [m.generate(features()) for m in (model, hot)]
    assert torch.equal(*losses) and torch.equal(*codes)


def test_mask_loss_is_least_at_the_true_shares_and_weighs_loud_bins():
    from modeling_mss.masks_mss import mask_loss

    powers = torch.rand(1, 4, 8, 120, generator=torch.Generator().manual_seed(0)) ** 4
    shares = powers / powers.sum(dim=1, keepdim=True)
    best = mask_loss(shares.log(), powers)
    for other in (torch.zeros_like(shares), shares.flip(1).log(), 3 * shares.log(), shares.log() / 3):
        assert mask_loss(other, powers) > best + 0.02
    loud, quiet = (shares.log().clone() for _ in range(2))
    total = powers.sum(dim=1)[0]
    for logits, place in ((loud, total.argmax()), (quiet, total.argmin())):
        logits[0, :, place // 120, place % 120] = torch.tensor([9.0, 0, 0, 0])
    assert mask_loss(loud, powers) > mask_loss(quiet, powers) > best - 1e-6
    assert mask_loss(torch.zeros(1, 4, 8, 120), torch.zeros(1, 4, 8, 120)).isfinite()


def gradients(model, **targets) -> set[str]:
    """Names of the weights that a loss reaches."""
    model.zero_grad()
    model(input_features=features(), **targets).loss.backward()
    return {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}


def test_gradients_reach_what_they_should():
    """The masks' loss the encoder alone; that of the codes all but the mask head, which is only told from."""
    model = tiny_model(**masked_options()).train()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    head = {name for name in trained if name.startswith("encoder.mask_head.")}
    encoder = {name for name in trained if name.startswith("encoder.")}
    codes, powers = torch.randint(64, (2, 4, 10, 4)), torch.rand(2, 4, 20, 120)
    assert gradients(model, stem_powers=powers) == encoder > head
    assert gradients(model, audio_codes=codes) == trained - head
    assert gradients(model, audio_codes=codes, stem_powers=powers) == trained
    output = model(input_features=features(), audio_codes=codes, stem_powers=powers)
    alone = model(input_features=features(), audio_codes=codes).loss
    torch.testing.assert_close(output.loss, alone + model.config.mask_loss_weight * output.mask_loss)


def test_nothing_is_learned_about_how_a_sum_is_shared(model):
    """Of the first of two songs only the vocals are known by themselves, of the second everything."""
    from modeling_mss.masks_mss import mask_loss

    known = torch.tensor([[True, False, False, False], [True] * 4])
    generator = torch.Generator().manual_seed(0)
    logits, powers = torch.randn(2, 4, 8, 120, generator=generator), torch.rand(2, 4, 8, 120, generator=generator)
    logits.requires_grad_()
    losses = [mask_loss(logits[row : row + 1], powers[row : row + 1], known[row : row + 1]) for row in range(2)]
    (gradient,) = torch.autograd.grad(sum(losses), logits)
    # Within the sum the gradient goes as the masks do: it moves all of it, and leaves the masks' ratios alone.
    push = gradient / logits.softmax(dim=1)
    torch.testing.assert_close(push[0, 2:], push[0, 1:2].expand(2, 8, 120))
    assert (push[1, 2:] - push[1, 1:2]).abs().mean() > 0.1 * push[1].abs().mean()
    assert gradient[0, 0].abs().mean() > 0.1 * gradient[1, 0].abs().mean()
    moved = [powers, powers[:, [0, 3, 1, 2]]]
    first, second = ([mask_loss(logits[row:][:1], p[row:][:1], known[row:][:1]) for p in moved] for row in range(2))
    torch.testing.assert_close(*first)
    assert (second[0] - second[1]).abs() > 1e-3
    torch.testing.assert_close(mask_loss(logits, powers), mask_loss(logits, powers, torch.ones(2, 4, dtype=torch.bool)))

    codes, others = torch.randint(64, (2, 2, 4, 10, 4), generator=generator)
    for row, reaches in ((0, False), (1, True)):
        changed = codes.clone()
        changed[row, 1:] = others[row, 1:]
        with torch.no_grad():
            outputs = [model(input_features=features(), audio_codes=c, known_stems=known) for c in (codes, changed)]
        assert torch.equal(outputs[0].loss, outputs[1].loss) != reaches
    # The mean over known tracks: the first song's vocals and all of the second's.
    outputs = [
        model(input_features=features()[row:][:1], audio_codes=codes[row:][:1], known_stems=known[row:][:1]).loss
        for row in range(2)
    ]
    both = model(input_features=features(), audio_codes=codes, known_stems=known).loss
    torch.testing.assert_close(both, (outputs[0] + 4 * outputs[1]) / 5)


def test_a_track_is_told_of_its_own_mask(model):
    """The mask of the drums changes: so does what the positions of drums are told, and nothing else."""
    mixture = model.encode_mixture(features())
    before = model.position_embeds(mixture, 4)
    mixture.masked_log_mel[:, 1] += 1.0
    after = model.position_embeds(mixture, 4)
    changed = (before != after).any(dim=-1)  # (B, blocks, positions)
    assert changed[:, 1, :10].all() and not changed[:, 1, 10].any() and not changed[:, [0, 2, 3]].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masked_conditioning": True}, "needs `mask_head`"),
        ({"mask_head": True, "conditional_encoder": "hubert"}, "log-mel plane"),
        ({"outputs": ["masked"]}, "must be some of"),
        ({"outputs": []}, "must be some of"),
        ({"mask_head": True, "mask_temperature": 0.0}, "positive `mask_temperature`"),
        ({"mask_head": True, "token_share": 1.5}, "token_share"),
    ],
)
def test_configurations_that_cannot_be_are_refused(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**options)


def test_a_configuration_leaves_the_one_of_its_encoder_to_its_owner():
    encoder_config = tiny_config().encoder_config
    masked = tiny_config(mask_head=True).to_dict() | {"encoder_config": encoder_config}
    assert MssConfig(**masked).encoder_config.num_masks == 4 and encoder_config.num_masks == 0


def test_targets_that_do_not_fit_are_refused(model):
    plain = tiny_model()
    with pytest.raises(ValueError, match="no mask head"):
        plain(input_features=features(), stem_powers=torch.rand(2, 4, 20, 120))
    with pytest.raises(ValueError, match="no masks"):
        plain.masks(features())
    with pytest.raises(ValueError, match="stem_powers"):
        model(input_features=features(), stem_powers=torch.rand(2, 4, 19, 120))
    with pytest.raises(ValueError, match="audio_codes"):
        model(input_features=features())


@given(
    bands=st.integers(2, 160),
    n_fft=st.sampled_from([256, 2048, 4096, 8192]),
    rate=st.sampled_from([8000, 44100, 48000, 96000]),
)
@settings(max_examples=30)
def test_bands_and_frames_are_interpolated_without_loss(bands, n_fft, rate):
    matrix = band_matrix(bands, 48000, n_fft, rate)
    assert matrix.shape == (bands, n_fft // 2 + 1) and matrix.min() >= 0
    torch.testing.assert_close(matrix.sum(dim=0), torch.ones(n_fft // 2 + 1))
    ramp = torch.arange(6.0)[:, None].expand(-1, bands)
    positions = torch.tensor([-1.0, 0.0, 0.25, 3.5, 5.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(masks_at_frames(ramp, positions)[:, 0], torch.tensor([0.0, 0.0, 0.25, 3.5, 5.0, 5.0]))


@pytest.mark.parametrize(("rate", "overlap_s"), [(48000, 0.1), (44100, 0.0), (44100, 0.48)])
def test_true_masks_in_windows_separate_a_song_and_add_up_to_it(four_sounds, rate, overlap_s):
    """Masks of the stems' own mel powers: in place, or the ratio would fall (by a frame: to below 5 dB)."""
    starts = window_starts(four_sounds.shape[1], 48000, round(48000 * overlap_s))
    powers = mel_power_spectrogram(split_windows(four_sounds, starts, 48000)) + 1e-9
    masks = powers / powers.sum(dim=1, keepdim=True)
    stems = resample(four_sounds, 48000, rate)
    mixture = stems.sum(dim=0, keepdim=True)
    estimates = [WindowEstimate(48000, masks=window) for window in masks]
    plan = WindowPlan(starts, 48000, round(48000 * overlap_s), 1.0, mixture.shape[1], rate)
    blocks = filter_windows(estimates, plan, 48000, [mixture])
    separated = torch.cat(list(blocks), dim=-1)[:, 0]
    torch.testing.assert_close(separated.sum(dim=0), mixture[0], atol=1e-5, rtol=0)
    error = (separated - stems).square().sum(dim=1)
    ratios = 10 * (stems.square().sum(dim=1) / error).log10()
    assert ratios.mean() > 9, ratios


def test_a_frame_beyond_the_last_window_has_the_masks_of_that_window():
    """A song that is vocals by its masks but for the last window: nothing of them is heard in its last frame.

    46080 samples are whole frames of the masks and of the filter, so that this frame is centred on the song's end.
    """
    masks = torch.zeros(3, 2, 48, 120)
    masks[:2, 0], masks[2, 0] = 1.0, 0.0
    masks[:, 1] = 1 - masks[:, 0]
    mixture = torch.randn(1, 3 * 46080, generator=torch.Generator().manual_seed(0))
    estimates = [WindowEstimate(46080, masks=window) for window in masks]
    starts = [0, 46080, 2 * 46080]
    plan = WindowPlan(starts, 46080, 0, 1.0, mixture.shape[1], 48000)
    stems = torch.cat(list(filter_windows(estimates, plan, 48000, [mixture])), dim=-1)
    assert stems[0, 0, -2000:].abs().max() < 1e-4
    assert (stems[0, 0, :40000] - mixture[0, :40000]).abs().max() < 1e-4


def test_mel_powers_and_log_mel_have_the_same_frames_and_bands():
    wave = torch.sin(2 * np.pi * 1000 * torch.arange(48000) / 48000)
    log_mel, powers = log_mel_spectrogram(wave), mel_power_spectrogram(wave)
    assert log_mel.shape == powers.shape == (50, 120)
    assert torch.equal(log_mel.argmax(dim=1), powers.argmax(dim=1))


def stems_of(pipe, **options) -> dict[str, np.ndarray]:
    result = pipe(song(), sampling_rate=44100, window_s=0.48, **options)
    return {stem["label"]: stem["audio"] for stem in result}


def test_masked_output_is_the_song_divided_and_the_default_of_such_a_model(pipe):
    steps = []
    stems = stems_of(pipe, progress_callback=lambda done, total: steps.append((done, total)))
    assert list(stems) == STEMS and all(audio.shape == (2, 60000) for audio in stems.values())
    np.testing.assert_allclose(sum(stems.values()), song(), atol=1e-5)
    assert max(np.abs(stems[a] - stems[b]).max() for a in STEMS for b in STEMS) > 0.01  # no equal shares
    assert steps[-1][0] == steps[-1][1] and steps == sorted(steps)
    again = stems_of(pipe, output="masked", batch_size=1)
    np.testing.assert_allclose(again["bass"], stems["bass"], atol=1e-5)
    some = stems_of(pipe, stems=["other", "drums"])
    np.testing.assert_array_equal(some["drums"], stems["drums"])
    two = stems_of(pipe, two_stems="vocals")
    np.testing.assert_allclose(two["no_vocals"], song() - stems["vocals"], atol=1e-5)


def test_filtered_output_lies_between_masks_and_tokens(pipe, monkeypatch):
    config = pipe.model.config
    monkeypatch.setattr(config, "token_share", 0.0)
    masked, without = stems_of(pipe), stems_of(pipe, output="filtered")
    for stem in STEMS:
        np.testing.assert_allclose(without[stem], masked[stem], atol=1e-5)
    monkeypatch.setattr(config, "token_share", 0.5)
    both = stems_of(pipe, output="filtered")
    np.testing.assert_allclose(sum(both.values()), song(), atol=1e-5)
    monkeypatch.setattr(config, "token_share", 1.0)
    tokens = stems_of(pipe, output="filtered")
    distances = [np.abs(both["drums"] - other["drums"]).mean() for other in (masked, tokens)]
    assert min(distances) > 1e-4
    # Vocals alone: the masks of all others are one, beside the rest that is not generated.
    monkeypatch.setattr(config, "token_share", 0.0)
    alone = stems_of(pipe, output="filtered", stems=["vocals"])
    np.testing.assert_allclose(alone["vocals"], masked["vocals"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "masked", "num_candidates": 4}, "samples no tokens"),
        ({"temperature": 0.5}, "samples no tokens"),  # masked is the default of this model
        ({"output": "louder"}, "what this checkpoint is for"),
    ],
)
def test_options_that_masks_do_not_have_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        stems_of(pipe, **options)


def test_a_checkpoint_says_what_it_is_for(model, monkeypatch):
    monkeypatch.setattr(model.config, "outputs", ["masked"])
    only_masks = AudioSourceSeparationPipeline(model=model, processor=tiny_processor(model.config))
    with pytest.raises(ValueError, match="what this checkpoint is for"):
        stems_of(only_masks, output="filtered")
