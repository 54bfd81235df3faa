"""What decoding offers beyond the arg max: expected latents, samples that can be repeated, tracks as they are complete,
and steps that are captured.

No CUDA graph is needed for most of that: operations are recorded with their tensors, and repeated on the same memory
with whatever else was known when they were recorded. That is what a graph does.
"""

import copy
import pickle
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from modeling_mss import cuda_graphs_mss, generation_mss
from modeling_mss.cuda_graphs_mss import SWITCH, graph_capture
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


def at(step):
    return torch.tensor([step])


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
    values = torch.stack([rows.uniform(at(step)) for step in range(4)])  # (steps, seeds, indices), 2^20 in all
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
    bits = (noise(seeds, num_steps=1, num_values=1024).uniform(at(0)).double() * 2**16).long()
    flipped = (bits[1:] ^ bits[:1])[..., None] >> torch.arange(16) & 1
    # A share of 1024 bits deviates from 1/2 by 1/64 (standard deviation); the largest of 64 x 16 stays below 5.
    assert (flipped.double().mean(dim=1) - 0.5).abs().max() < 5 / 64


def test_noise_is_integers_until_its_last_step_and_so_the_same_on_every_device():
    words = torch.tensor([0, 1, 2**31, 2**32 - 1, 123456789])
    pairs = hash_words(words[:, None], words)  # tensors and Python's integers, which know no overflow
    assert pairs.tolist() == [[hash_words(first, second) for second in words.tolist()] for first in words.tolist()]
    bits = (noise([0, 123456789012345]).uniform(at(3))[:, [0, 1, 65535]].double() * 2**16).long()
    assert bits.tolist() == [[28145, 7273, 28756], [12569, 12590, 7577]]  # seeds mean the same for ever


def test_samples_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.25, 0.2, 0.04, 0.01])
    sampler = CodeSampler(GenerationConfig(do_sample=True, top_k=0), noise(range(20), 4, 5000))
    logits = probabilities.log().expand(20, 1000, 5)
    samples = torch.cat([sampler(logits, at(step)).flatten() for step in range(4)])
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


class Recording(TorchDispatchMode):
    waiting = "_local_scalar_dense", "nonzero", "index.Tensor"  # the host would wait for a GPU; for a list as index too

    def __init__(self):
        super().__init__()
        self.operations = []

    @property
    def names(self):
        return {str(operation).removeprefix("aten.") for operation, *_ in self.operations}

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        results = operation(*arguments, **(options or {}))
        self.operations.append((operation, arguments, options or {}, results))
        return results

    def replay(self):
        for operation, arguments, options, results in self.operations:
            again = operation(*arguments, **options)
            several = isinstance(results, (tuple, list))
            for result, value in zip(*((results, again) if several else ([results], [again]))):
                if isinstance(result, torch.Tensor) and result.data_ptr() != value.data_ptr():
                    result.copy_(value)  # others are views, or were written in place


@pytest.fixture
def captured(monkeypatch):
    """Recordings in place of CUDA graphs, one for each that is captured; buckets of 16 positions."""
    recordings = []

    def capture(function, undo):
        recordings.append(Recording())
        with recordings[-1]:
            function()
        undo()
        return recordings[-1].replay

    monkeypatch.setattr(generation_mss, "BUCKET_SIZE", 16)
    monkeypatch.setattr(generation_mss, "graph_capture", lambda model, device: capture)
    return recordings


SAMPLED = {"do_sample": True, "seed": 3, "top_p": 0.9}


@pytest.mark.parametrize(
    "name, options",
    [
        ("paper", SAMPLED | {"output_latents": True}),
        ("all_options", {"output_latents": True, "stems": ["bass"]}),
        ("told_masks", SAMPLED | {"num_return_sequences": 2, "top_k": 30, "temperature": 0.9}),
        ("a3_parallel", SAMPLED),
    ],
)
def test_captured_steps_decode_what_plain_ones_do(name, options, captured, monkeypatch):
    model = with_codebooks(variant(name))
    inputs = window(model, code_frames=7)
    replayed = model.generate(**inputs, **options)
    assert 1 < len(captured) < 12  # several buckets, with fewer graphs than frames
    names = set().union(*(recording.names for recording in captured))
    assert "index_copy_.default" in names
    assert not [name for name in names if name.startswith(Recording.waiting)]

    with monkeypatch.context() as patch:
        patch.setattr(generation_mss, "graph_capture", lambda model, device: lambda function, undo: function)
        called = copy.deepcopy(model).generate(**inputs, **options)  # contexts of whole buckets alone
    monkeypatch.undo()
    plain = model.generate(**inputs, **options)
    for output in (called, replayed):
        if not options.get("output_latents"):
            assert torch.equal(output, plain)
            continue
        assert torch.equal(output.codes, plain.codes)
        torch.testing.assert_close(output.acoustic_latents, plain.acoustic_latents)
        torch.testing.assert_close(output.semantic_latents, plain.semantic_latents)


def test_captured_steps_serve_later_calls(captured, monkeypatch):
    model = variant("paper")
    inputs = window(model)
    others = {"input_features": torch.randn_like(inputs["input_features"])}
    fresh = copy.deepcopy(model)

    def expected(model, inputs, **options):
        with monkeypatch.context() as patch:
            patch.setattr(generation_mss, "graph_capture", graph_capture)
            return model.generate(**inputs, **options)

    broken = {"input_features": torch.full_like(inputs["input_features"], torch.nan)}
    model.generate(**broken, **SAMPLED)  # its keys and values are left behind
    first = model.generate(**inputs, **SAMPLED)
    count = len(captured)
    kept = first.clone()
    second = model.generate(**others, **SAMPLED | {"seed": 4})
    assert len(captured) == count and torch.equal(first, kept)
    assert torch.equal(first, expected(fresh, inputs, **SAMPLED))
    assert torch.equal(second, expected(fresh, others, **SAMPLED | {"seed": 4}))
    assert "kept_states" not in vars(fresh)  # plain calls keep nothing

    with torch.no_grad():
        model.acoustic_head.weight.neg_()  # in place, as by a step of training: read by the same graphs
    changed = model.generate(**inputs, **SAMPLED)
    assert len(captured) == count and not torch.equal(changed, first)
    model.load_state_dict(fresh.state_dict(), assign=True)
    assert torch.equal(model.generate(**inputs, **SAMPLED), first)
    assert len(captured) == 2 * count  # other memory, other graphs

    for options in ({"top_p": 0.5}, {"do_sample": False, "top_p": None}):
        options = SAMPLED | options
        assert torch.equal(model.generate(**inputs, **options), expected(fresh, inputs, **options))
    count = len(captured)
    model.generate(**inputs, **options)
    assert len(captured) == count and len(model.kept_states.states) == 2
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not copied.kept_states.states
        assert torch.equal(copied.generate(**inputs, **SAMPLED), first)


@pytest.mark.parametrize("name", ["paper", "a3_parallel"])
def test_tracks_are_told_as_soon_as_they_are_complete(name, captured):
    model = with_codebooks(variant(name))
    inputs, told, steps = window(model), [], []

    def on_track(stem, output):
        told.append((stem, output, copy.deepcopy(output), len(steps)))

    options = SAMPLED | {"output_latents": True, "num_return_sequences": 2, "stems": ["bass", "vocals"]}
    callbacks = {"track_callback": on_track, "step_callback": lambda *step: steps.append(step)}
    with Recording() as everything:
        whole = model.generate(**inputs, **options, **callbacks)
    assert not [name for name in everything.names if name.startswith(Recording.waiting)]
    assert [(stem, done) for stem, *_, done in told] == [("vocals", 6), ("bass", 6 if name == "a3_parallel" else 18)]
    model.generate(**inputs, **options | {"seed": 9})  # in the same memory
    for stem, output, as_told, _ in told:
        index = options["stems"].index(stem)
        for name in ("codes", "acoustic_latents", "semantic_latents"):
            assert torch.equal(output[name], as_told[name])
            assert torch.equal(output[name], whole[name][:, index : index + 1])


def test_nothing_is_captured_unless_asked_for(monkeypatch):
    device, other = torch.device("cuda", 0), torch.device("cuda", 1)
    monkeypatch.setattr(cuda_graphs_mss, "CudaGraphCapture", lambda device: f"captures on {device}")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def capture(*devices, training=False):
        weights = [SimpleNamespace(device=device) for device in devices]
        return graph_capture(SimpleNamespace(training=training, parameters=lambda: weights, buffers=list), device)

    monkeypatch.delenv(SWITCH, raising=False)
    assert capture(device) is None
    monkeypatch.setenv(SWITCH, "1")
    assert capture(device) == "captures on cuda:0"
    assert capture(device, other) is None and capture(device, training=True) is None
    assert graph_capture(variant("paper"), torch.device("cpu")) is None
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    assert capture(device) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [SAMPLED, {"output_latents": True}])
def test_cuda_graphs_decode_what_plain_steps_do(options, monkeypatch):
    model = with_codebooks(variant("told_masks")).cuda()
    windows = [{name: value.cuda() for name, value in window(model, batch, 50).items()} for batch in (3, 2)]
    plain = [model.generate(**inputs, **options) for inputs in windows]
    monkeypatch.setenv(SWITCH, "1")
    for _ in range(2):
        for inputs, output in zip(windows, plain):
            replayed = model.generate(**inputs, **options)
            codes = (replayed, output) if isinstance(output, torch.Tensor) else (replayed.codes, output.codes)
            assert torch.equal(*codes)
    assert len(model.kept_states.states) == 2
