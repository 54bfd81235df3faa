"""The separator: the paper's numbers, the loss, the token grammar, and decoding against teacher forcing."""

import hashlib

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, Trainer, TrainingArguments

from modeling_mss import MssConfig, MssForConditionalGeneration
from modeling_mss.generation_mss import TokenGrammar
from tests.tiny import masked_options, start_codebooks, tiny_codec, tiny_config, tiny_model, tiny_processor

# Every option for small models and every ablation of the architecture, alone and together.
VARIANTS = {
    "paper": {},
    "prefix_stride_2": {"prefix_stride": 2},
    "prefix_stride_4": {"prefix_stride": 4},
    "aligned_conditioning": {"aligned_conditioning": True},
    "track_embeddings": {"track_embeddings": True},
    "codebook_embedding": {"code_embedding": "codebook"},
    "all_options": {
        "prefix_stride": 2,
        "aligned_conditioning": True,
        "track_embeddings": True,
        "code_embedding": "codebook",
    },
    "told_masks": masked_options(),
    "a1_hubert": {"conditional_encoder": "hubert"},
    "a3_parallel": {"track_generation": "parallel"},
    "a3_parallel_codebook": {"track_generation": "parallel", "code_embedding": "codebook", "prefix_stride": 2},
}


def variant(name: str) -> MssForConditionalGeneration:
    """A model with weights so large that its choices depend on everything it reads."""
    model = tiny_model(**VARIANTS[name])
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def window(model: MssForConditionalGeneration, batch: int = 2, code_frames: int = 5) -> dict:
    generator = torch.Generator().manual_seed(1)
    if model.config.conditional_encoder == "hubert":
        return {"input_values": torch.randn(batch, code_frames * 1280, generator=generator)}
    return {"input_features": torch.randn(batch, code_frames * 4, 120, generator=generator)}


def test_defaults_are_the_papers():
    config = MssConfig()
    with torch.device("meta"):
        model = MssForConditionalGeneration(config)
    layers = [value.numel() for name, value in model.decoder.layers.named_parameters() if "norm" not in name]
    assert sum(layers) == 16 * (4 * 2048**2 + 3 * 2048 * 8192) == 1_073_741_824
    assert (config.num_codebooks, config.codebook_size, config.stems) == (
        16,
        1024,
        ["vocals", "drums", "bass", "other"],
    )
    assert config.codebook_loss_weights == [2.0] + [1.0] * 15
    encoder = config.encoder_config
    assert (encoder.num_hidden_layers, encoder.num_attention_heads, encoder.conv_kernel_size) == (8, 12, 31)
    assert model.code_embedding.table.weight.shape == (2 * 16 * 1024, 2048)
    assert model.acoustic_head.weight.shape == (16 * 1025, 2048)
    assert model.semantic_head.weight.shape == (16 * 1024, 2048)
    assert TokenGrammar(num_prefix=200, num_frames=50, num_segments=4).num_steps == 404


def test_the_papers_configuration_is_what_it_was_before_there_were_masks():
    """Names and shapes of all weights, codes and loss, as this very function printed them at revision 972257b.

    The default norm of the Conformer's convolutions is `layer_norm` since: the same without the statistics of
    `batch_norm`, with which names and shapes are those of that revision.
    """
    for conv_norm, digest in (("batch_norm", "bae0131a84807f14"), (None, "fdd7be3905df86a2")):
        encoder_config = {"conv_norm": conv_norm} if conv_norm else None
        with torch.device("meta"):
            paper = MssForConditionalGeneration(MssConfig(encoder_config=encoder_config))
        names = sorted((name, tuple(value.shape)) for name, value in paper.state_dict().items())
        assert hashlib.sha256(repr(names).encode()).hexdigest()[:16] == digest
    model = tiny_model()
    for weight in model.parameters():
        if weight.requires_grad and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(weight.numel()))
    inputs = window(model)
    codes = model.generate(**inputs)
    assert codes.sum().item() == 9627
    assert model(audio_codes=codes, **inputs).loss.item() == pytest.approx(14.561094284057617, abs=1e-5)


@given(st.integers(1, 400), st.integers(1, 100), st.integers(1, 6))
def test_grammar_accounts_for_every_position(num_prefix, num_frames, num_segments):
    grammar = TokenGrammar(num_prefix, num_frames, num_segments)
    symbols = ["mix"] + ["F"] * num_prefix
    for segment in range(num_segments):
        assert grammar.segment_start(segment) == len(symbols)
        symbols += ["S"] + ["a" if grammar.path(j) == 0 else "s" for j in range(grammar.codes_per_segment)]
    assert len(symbols) == grammar.length
    assert symbols.count("a") == symbols.count("s") == num_segments * num_frames
    # What a position predicts is what stands at the next one; the last code of a track predicts E.
    assert grammar.num_steps == symbols.count("a") + symbols.count("s") + num_segments


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_greedy_decoding_equals_teacher_forced_argmax(name):
    model = variant(name)
    inputs = window(model)
    codes = model.generate(**inputs)
    assert codes.shape == (2, 4, 10, 4) and len(codes.unique()) > 20
    logits = model(audio_codes=codes, **inputs).logits
    assert logits.shape == (2, 4, 11, 4, 65)
    assert torch.equal(logits[:, :, :-1, :, :64].argmax(dim=-1), codes)
    assert logits[:, :, 1::2, :, 64].isneginf().all()  # semantic heads never say E
    assert logits[:, :, 0::2].isfinite().all()


@pytest.mark.parametrize("name", ["paper", "all_options", "a3_parallel"])
def test_asking_for_some_stems_generates_no_more_tracks_than_needed(name):
    model = variant(name)
    inputs = window(model)
    codes = model.generate(**inputs)
    steps = []
    some = model.generate(
        **inputs, stems=["drums", "vocals"], step_callback=lambda done, total: steps.append((done, total))
    )
    assert torch.equal(some, codes[:, [1, 0]])
    tracks = 1 if name == "a3_parallel" else 2
    assert steps == [(11 * track + step, 11 * tracks) for track in range(tracks) for step in (2, 4, 6, 8, 10, 11)]


def test_loss_is_the_weighted_label_smoothed_mean_of_the_paper():
    weights = [8.0, 4.0, 3.0, 2.0]  # ablation A2 is a matter of this list
    model = tiny_model(codebook_loss_weights=weights)
    with torch.no_grad():
        model.acoustic_head.weight.view(4, 65, -1)[::2, 64] *= 20  # heads that often say E
    inputs = window(model)
    codes = torch.randint(64, (2, 4, 10, 4))
    output = model(audio_codes=codes, **inputs)
    expected, hits = torch.zeros(4), torch.zeros(4, 4)
    for q in range(4):
        terms = []
        for b in range(2):
            for stem in range(4):
                for j in range(11):
                    scores = output.logits[b, stem, j, q].double()
                    scores = scores if j % 2 == 0 else scores[:64]
                    label = codes[b, stem, j, q] if j < 10 else torch.tensor(64)  # E
                    log_probabilities = scores.log_softmax(dim=0)
                    smoothed = -0.9 * log_probabilities[label] - 0.1 * log_probabilities.mean()
                    terms.append(smoothed)
                    hits[stem, q] += scores.argmax() == label
        expected[q] = torch.stack(terms).mean()
    # 1e-4: float32 against float64 sums of about 17 x 4.2.
    torch.testing.assert_close(output.loss, (torch.tensor(weights) * expected).sum(), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.codebook_losses.mean(dim=0), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.codebook_accuracies, hits / 22)
    ends = (output.logits[:, :, 10].argmax(dim=-1) == 64).float().mean(dim=-1)  # (B, stems)
    assert 0 < ends.mean() < 1 and not torch.equal(ends[0], ends[1])
    torch.testing.assert_close(output.end_accuracies, ends.mean(dim=0))
    known = torch.tensor([[True, False, True, True], [True, False, False, True]])
    expected = torch.stack((ends[:, 0].mean(), torch.tensor(torch.nan), ends[0, 2], ends[:, 3].mean()))
    of_known = model(audio_codes=codes, known_stems=known, **inputs).end_accuracies
    torch.testing.assert_close(of_known, expected, equal_nan=True)


def test_sampling_is_repeatable_limited_and_configured_by_the_saved_generation_config(tmp_path):
    model = variant("paper")
    inputs = window(model)
    greedy = model.generate(**inputs)
    sampled = model.generate(**inputs, do_sample=True, seed=3)
    assert torch.equal(sampled, model.generate(**inputs, do_sample=True, seed=3))
    assert not torch.equal(sampled, greedy) and sampled.max() < 64  # E is masked
    assert not torch.equal(sampled, model.generate(**inputs, do_sample=True, seed=4))
    for limit in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert torch.equal(model.generate(**inputs, do_sample=True, **limit), greedy), limit

    model.generation_config = GenerationConfig(do_sample=True, top_k=1)
    model.save_pretrained(tmp_path)
    loaded = MssForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.do_sample and torch.equal(loaded.generate(**inputs), greedy)
    assert torch.equal(loaded.generate(**inputs, top_k=64, seed=3), sampled)  # arguments win


def test_bad_input_is_named():
    model = tiny_model()
    inputs = window(model)
    with pytest.raises(ValueError, match=r"\['vocals', 'drums', 'bass', 'other'\].*guitar"):
        model.generate(**inputs, stems=["guitar"])
    with pytest.raises(ValueError, match="do_sample=True"):
        model.generate(**inputs, top_k=3)
    with pytest.raises(ValueError, match="reads `input_features`"):
        model.generate(input_values=torch.randn(1, 1280))
    with pytest.raises(ValueError, match="got 6 encoder frames"):
        model.generate(input_features=torch.randn(1, 6, 120))
    with pytest.raises(ValueError, match=r"\(2, 4, 10, 4\).*got \(2, 4, 8, 4\)"):
        model(**inputs, audio_codes=torch.zeros(2, 4, 8, 4, dtype=torch.long))
    for option in ({"prefix_stride": 3}, {"track_generation": "both"}, {"codebook_loss_weights": [1.0]}, {"stems": []}):
        with pytest.raises(StrictDataclassError, match=next(iter(option))):
            tiny_config(**option)
    with pytest.raises(StrictDataclassError, match="sequential"):
        tiny_config(track_embeddings=True, track_generation="parallel")


@pytest.mark.parametrize("name", ["paper", "all_options", "a1_hubert", "a3_parallel"])
def test_every_trained_parameter_gets_a_gradient_with_checkpointing(name):
    model = variant(name).train()
    model.gradient_checkpointing_enable()
    inputs = window(model)
    model(audio_codes=torch.randint(64, (2, 4, 10, 4)), **inputs).loss.backward()
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen and all(name.startswith(("codec.", "encoder.hubert.")) for name in frozen)
    without = [n for n, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    assert not model.codec.training


def test_batch_norms_count_a_batch_once_with_gradient_checkpointing(tmp_path):
    """Also as transformers' Trainer asks for it."""
    codes, statistics = torch.randint(64, (2, 4, 10, 4)), []
    for checkpointing in (False, True):
        model = tiny_model(conv_norm="batch_norm")
        crops = [
            {"input_features": row, "audio_codes": code} for row, code in zip(window(model)["input_features"], codes)
        ]
        settings = TrainingArguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=2,
            gradient_checkpointing=checkpointing,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
        )
        Trainer(model, settings, train_dataset=crops).train()
        statistics.append({name: value for name, value in model.named_buffers() if "depthwise_norm" in name})
    without, repeated = statistics
    assert len(without) == 6 and all(torch.equal(without[name], repeated[name]) for name in without)
    counted = [value.item() for name, value in repeated.items() if name.endswith("num_batches_tracked")]
    assert counted == [1, 1] and not torch.equal(
        repeated["encoder.layers.0.convolution.depthwise_norm.running_mean"], torch.zeros(32)
    )
    with pytest.raises(ValueError, match="use_reentrant=False"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


def test_configurations_as_objects_or_partial_dictionaries_load_again(tmp_path):
    config = MssConfig(
        encoder_config=tiny_config().encoder_config,
        decoder_config=LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2),
        codec_config=tiny_config().codec_config,
    )
    model = MssForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    inputs = window(model)
    assert torch.equal(
        MssForConditionalGeneration.from_pretrained(tmp_path).generate(**inputs), model.generate(**inputs)
    )


@pytest.mark.parametrize("name", ["paper", "a1_hubert"])
def test_frozen_parts_stay_frozen_and_codebooks_exact_after_loading(name, tmp_path):
    model = variant(name)
    model.save_pretrained(tmp_path)
    loaded = MssForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).train()
    frozen = [key for key, value in loaded.named_parameters() if not value.requires_grad]
    assert frozen == [key for key, value in model.named_parameters() if not value.requires_grad]
    assert any(key.startswith("codec.") for key in frozen)
    assert not loaded.codec.training and loaded.compute_dtype == torch.bfloat16
    for key, value in loaded.codec.named_buffers():
        if key.endswith("embed"):
            assert torch.equal(value, model.codec.get_buffer(key))
    exact = ("codec.decoder.out.weight", "codec.decoder.final_norm.weight", "encoder.hubert.")
    assert all(value.dtype == torch.float32 for key, value in loaded.named_parameters() if key.startswith(exact))
    assert loaded.codec.decoder.embed.weight.dtype == torch.bfloat16
    codes = loaded.eval().generate(**window(loaded))
    assert loaded.decode_codes(codes).isfinite().all()


# Together these have every option.
@pytest.mark.parametrize("name", ["paper", "all_options", "told_masks", "a1_hubert", "a3_parallel_codebook"])
def test_a_window_is_learned_by_heart_from_audio_to_audio(name, four_sounds):
    """Trained on one window of four sounds, the model generates its codes exactly, and so the codec's audio."""
    codec = tiny_codec()
    start_codebooks(codec, four_sounds)
    with torch.no_grad():
        codes_of = codec.encode(four_sounds)
        expected = codec.decode(codes_of.acoustic_codes, codes_of.semantic_codes).audio_values
    model = tiny_model(**VARIANTS[name])
    model.codec.load_state_dict({key: codec.state_dict()[key] for key in model.codec.state_dict()})
    processor = tiny_processor(model.config)
    features = processor(four_sounds.sum(dim=0), sampling_rate=48000)
    codes = codes_of.audio_codes[None]
    assert codes.shape == (1, 4, 100, 4) and len(codes.unique()) > 50

    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0)
    model.train()
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20)
        output = model(audio_codes=codes, **features)
        if output.codebook_accuracies.min() == 1:
            model.eval()
            if torch.equal(model.generate(**features), codes):
                break
            model.train()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    generated = model.eval().generate(**features)
    assert torch.equal(generated, codes)
    audio = model.decode_codes(generated)[0]
    # 1e-6: the same codes decoded in one batch with others.
    torch.testing.assert_close(audio, expected, atol=1e-6, rtol=0)
    assert functional.l1_loss(audio[0], audio[1]) > 0  # four different stems
