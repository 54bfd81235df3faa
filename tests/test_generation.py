"""What decoding offers beyond the arg max: expected latents, and samples that can be repeated."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig

from modeling_mss.generation_mss import MssGenerateOutput
from modeling_mss.sampling_mss import CodeSampler, CounterNoise, hash_words
from tests.test_model import variant, window


def logits_of(model, codes, inputs):
    """Teacher forcing, `(B, stems, 2 F, Q, V)`: what the model says at each code, given the ones before it."""
    return model(audio_codes=codes, **inputs).logits[:, :, :-1, :, : model.config.codebook_size]


def with_codebooks(model):
    """Codebooks of the tiny codec are zeros before training."""
    for quantizer in (model.codec.acoustic_quantizer, model.codec.semantic_quantizer):
        for layer in quantizer.layers:
            layer.embed.normal_()
    return model


def noise(seeds, num_steps=4, num_values=2**16):
    return CounterNoise(seeds, num_steps, num_values, torch.device("cpu"))


@pytest.mark.parametrize("name", ["paper", "all_options", "a3_parallel"])
@torch.no_grad()
def test_expected_latents_are_codebooks_averaged_with_the_models_probabilities(name):
    model = with_codebooks(variant(name))
    inputs = window(model)
    output = model.generate(**inputs, stems=["drums", "vocals"], output_latents=True)
    assert isinstance(output, MssGenerateOutput)
    every = model.generate(**inputs)
    assert torch.equal(output.codes, every[:, [1, 0]])
    probabilities = logits_of(model, every, inputs)[:, [1, 0]].softmax(dim=-1)
    codec = model.codec
    for path, (quantizer, latents) in enumerate(
        ((codec.acoustic_quantizer, output.acoustic_latents), (codec.semantic_quantizer, output.semantic_latents))
    ):
        assert latents.shape == (2, 2, 16, 5) and latents.dtype == torch.float32
        expected = sum(probabilities[:, :, path::2, q] @ quantizer.layers[q].embed for q in range(4)).transpose(2, 3)
        # 1e-4: logits with and without a cache.
        torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)
        chosen = quantizer.decode(output.codes[:, :, path::2].flatten(0, 1).transpose(1, 2)).view_as(latents)
        assert latents.norm() < 0.9 * chosen.norm()  # uncertainty shrinks


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 5}])
def test_expected_latents_of_a_certain_model_are_the_decoded_codes(options):
    model = with_codebooks(variant("paper"))
    with torch.no_grad():
        model.acoustic_head.weight *= 1e5
        model.semantic_head.weight *= 1e5
    output = model.generate(**window(model), output_latents=True, **options)
    for path, quantizer in enumerate((model.codec.acoustic_quantizer, model.codec.semantic_quantizer)):
        latents = (output.acoustic_latents, output.semantic_latents)[path]
        decoded = quantizer.decode(output.codes[:, :, path::2].flatten(0, 1).transpose(1, 2))
        torch.testing.assert_close(latents.flatten(0, 1), decoded, atol=1e-5, rtol=0)


def test_noise_is_uniform_in_every_direction():
    rows = noise([0, 1, 2**32, -7])
    values = torch.stack([rows.uniform(step) for step in range(4)])  # (steps, seeds, indices), 2^20 in all
    assert values.dtype == torch.float32 and values.min() > 0 and values.max() <= 1
    count = values.numel()
    flat = values.flatten().double()
    assert abs(flat.mean() - 1 / 2) < 4 * (1 / 12 / count) ** 0.5
    assert abs(flat.var() - 1 / 12) < 4 * (1 / 180 / count) ** 0.5
    for stream in values.flatten(0, 1):
        assert stats.kstest(stream.numpy(), "uniform").pvalue > 1e-4
    # Neighbouring seeds, steps and indices: streams of 2^16 values, correlations of order 2^-8.
    streams = values.flatten(0, 1).numpy()
    correlations = np.corrcoef(np.concatenate([streams, *(np.roll(streams, lag, axis=1) for lag in (1, 2, 64))]))
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < 5 / 2**8
    # Pairs of values are uniform in the square, which correlations do not tell.
    for first, second in ((values[0], values[1]), (values[:, 0], values[:, 1]), (values[..., ::2], values[..., 1::2])):
        cells = (first * 16).long().clamp(max=15) * 16 + (second * 16).long().clamp(max=15)
        assert stats.chisquare(cells.flatten().bincount(minlength=256).numpy()).pvalue > 1e-4


def test_each_bit_of_a_seed_changes_half_of_the_bits_of_the_noise():
    seeds = [0] + [1 << bit for bit in range(64)]
    bits = (noise(seeds, num_steps=1, num_values=1024).uniform(0).double() * 2**16).long()
    flipped = (bits[1:] ^ bits[:1])[..., None] >> torch.arange(16) & 1
    # A share of 1024 bits deviates from 1/2 by 1/64 (standard deviation); the largest of 64 x 16 stays below 5.
    assert (flipped.double().mean(dim=1) - 0.5).abs().max() < 5 / 64


def test_noise_is_integers_until_its_last_step_and_so_the_same_on_every_device():
    words = torch.tensor([0, 1, 2**31, 2**32 - 1, 123456789])
    pairs = hash_words(words[:, None], words)  # tensors and Python's integers, which know no overflow
    assert pairs.tolist() == [[hash_words(first, second) for second in words.tolist()] for first in words.tolist()]
    bits = (noise([0, 123456789012345]).uniform(3)[:, [0, 1, 65535]].double() * 2**16).long()
    assert bits.tolist() == [[28145, 7273, 28756], [12569, 12590, 7577]]  # seeds mean the same for ever


def test_samples_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.25, 0.2, 0.04, 0.01])
    sampler = CodeSampler(GenerationConfig(do_sample=True, top_k=0), noise(range(20), 4, 5000))
    logits = probabilities.log().expand(20, 1000, 5)
    samples = torch.cat([sampler(logits, step).flatten() for step in range(4)])
    expected = probabilities.double() * len(samples)
    assert stats.chisquare(samples.bincount(minlength=5), expected * len(samples) / expected.sum()).pvalue > 1e-4


def test_the_samples_of_a_window_depend_on_its_seed_alone():
    model = variant("all_options")
    inputs = window(model, batch=5)["input_features"]
    seeds = model.derive_seeds(3, range(5))
    assert len(set(seeds)) == 5 and model.derive_seeds(3, [4, 0]) == [seeds[4], seeds[0]]
    together = model.generate(inputs, do_sample=True, seed=3)
    assert torch.equal(model.generate(inputs, do_sample=True, seed=seeds), together)
    for rows in ([0], [1, 2, 3], [4, 0]):
        some = model.generate(inputs[rows], do_sample=True, seed=[seeds[row] for row in rows])
        assert torch.equal(some, together[rows])
    candidates = model.generate(inputs[[0, 0, 0]], do_sample=True, seed=[seeds[0], seeds[1], seeds[0]])
    assert torch.equal(candidates[0], candidates[2]) and not torch.equal(candidates[0], candidates[1])
    with pytest.raises(ValueError, match="one for each of 5 windows, got 2"):
        model.generate(inputs, do_sample=True, seed=[1, 2])


def test_without_a_seed_torch_decides_and_greedy_decoding_leaves_its_generator_alone():
    model = variant("paper")
    inputs = window(model)
    first, second = (torch.manual_seed(seed) and model.generate(**inputs, do_sample=True) for seed in (1, 1))
    assert torch.equal(first, second) and not torch.equal(first, model.generate(**inputs, do_sample=True))
    state = torch.get_rng_state()
    model.generate(**inputs)
    assert torch.equal(torch.get_rng_state(), state)
