"""What users of transformers try first: calls that fit together, `generate`, `Trainer`, quantised loading."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoFeatureExtractor,
    DacConfig,
    GenerationConfig,
    HubertConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2Config,
    Trainer,
    TrainingArguments,
)
from transformers.generation.streamers import BaseStreamer

from modeling_mss import HCodecModel, MssConfig, MssEncoderConfig, MssForConditionalGeneration
from modeling_mss.convert_hcodec import save_feature_extractor
from modeling_mss.modeling_mss import MssEncoder
from modeling_mss.quantization_hcodec import nearest_rows
from tests.test_model import variant, window
from tests.tiny import masked_options, start_codebooks, tiny_codec, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model() -> MssForConditionalGeneration:
    return variant("paper")


def test_what_one_call_returns_is_what_the_next_one_takes(model, four_sounds):
    """From a stereo song to its stems and back into the loss, at a level that bfloat16 does not have."""
    processor = tiny_processor()
    song = torch.stack((four_sounds.sum(dim=0), four_sounds[0]))[:, :120000] * 0.1473
    inputs = processor(song, sampling_rate=44100)
    codes = model.generate(**inputs)
    plan = processor.plan(song, sampling_rate=44100)
    stems = processor.stitch(model.decode_codes(codes), plan)
    assert stems.shape == (4, 120000)
    assert inputs.to(dtype=torch.bfloat16).input_features.dtype == torch.bfloat16
    mono = song.mean(dim=0)
    assert plan.gain == pytest.approx(0.1 / mono.square().mean().sqrt().item(), rel=1e-2)  # of the song, resampled
    by_name = model(**inputs, audio_codes=codes)
    assert torch.equal(model(**inputs, labels=codes).loss, by_name.loss)
    with pytest.raises(ValueError, match="got both"):
        model(**inputs, audio_codes=codes, labels=codes)
    with pytest.raises(ValueError, match=r"`codes` must have shape .*, got \(4, 100, 4\)"):
        model.decode_codes(codes[0])
    for wrong in (-100, 64):
        with pytest.raises(ValueError, match=rf"from 0 to 63, got .*{wrong}.*known_stems"):
            model(**inputs, labels=codes.masked_fill(torch.arange(4) == 3, wrong))
    assert model.get_input_embeddings() is model.decoder.embed_tokens
    with pytest.raises(ValueError, match="no vocabulary"):
        model.resize_token_embeddings(10)


@pytest.mark.parametrize("name", ["paper", "told_masks", "a3_parallel"])
def test_candidates_share_the_reading_of_the_mixture(name, monkeypatch):
    model = variant(name)
    inputs = window(model)
    rows = []
    forward = MssEncoder.forward
    monkeypatch.setattr(MssEncoder, "forward", lambda self, x: rows.append(len(x)) or forward(self, x))
    codes = model.generate(**inputs, do_sample=True, num_return_sequences=3, seed=[5, 6])
    assert rows == [2] and codes.shape[0] == 6
    assert len(codes.flatten(1).unique(dim=0)) == 6
    # Alone, or fewer of them, a window's candidates are the same.
    first = {key: value[:1] for key, value in inputs.items()}
    assert torch.equal(model.generate(**first, do_sample=True, num_return_sequences=2, seed=[5]), codes[:2])
    assert torch.equal(model.generate(**inputs, do_sample=True, seed=[5, 6]), codes[[0, 3]])
    seeds = [candidate for seed in (5, 6) for candidate in model.derive_seeds(seed, range(3))]
    repeated = {key: value.repeat_interleave(3, dim=0) for key, value in inputs.items()}
    monkeypatch.setattr(type(model), "derive_seeds", staticmethod(lambda seed, indices: [seed]))
    assert torch.equal(model.generate(**repeated, do_sample=True, seed=seeds), codes)  # one reading for each row


def test_settings_of_generation_are_followed_or_refused(model, tmp_path):
    inputs = window(model)
    greedy = model.generate(**inputs)
    asked = ({"num_beams": 4}, {"repetition_penalty": 1.2}, {"min_p": 0.1}, {"max_new_tokens": 10}, {"eos_token_id": 3})
    for other in asked:
        name = next(iter(other))
        with pytest.raises(ValueError, match=rf"follows .*num_return_sequences'\], got \['{name}'\]: leave them out"):
            model.generate(**inputs, **other)
        with pytest.raises(ValueError, match=rf"got \['{name}'\]"):
            model.generate(**inputs, generation_config=GenerationConfig(**other))
    nothing = GenerationConfig(num_beams=1, repetition_penalty=1.0, use_cache=True, temperature=1.0, min_length=0)
    assert torch.equal(model.generate(**inputs, generation_config=nothing, top_p=1.0, output_scores=False), greedy)
    with pytest.raises(ValueError, match=r"got \['use_cache'\]"):
        model.generate(**inputs, use_cache=False)
    for idle in ({"num_return_sequences": 2}, {"top_p": 0.5}, {"generation_config": GenerationConfig(temperature=0.7)}):
        with pytest.raises(ValueError, match="do_sample=True"):
            model.generate(**inputs, **idle)
    with pytest.raises(ValueError, match="got dict"):
        model.generate(**inputs, generation_config={"do_sample": True})
    with pytest.raises(ValueError, match="at least 1, got 0"):
        model.generate(**inputs, do_sample=True, num_return_sequences=0)

    saved = copy.deepcopy(model)
    saved.generation_config = GenerationConfig(do_sample=True, num_return_sequences=3)
    saved.save_pretrained(tmp_path)
    loaded = MssForConditionalGeneration.from_pretrained(tmp_path)
    assert len(loaded.generate(**inputs)) == 6
    assert torch.equal(loaded.generate(**inputs, do_sample=False), greedy)
    part = loaded.generate(**inputs, generation_config=GenerationConfig(top_k=1))  # the rest is as saved
    assert torch.equal(part, greedy.repeat_interleave(3, dim=0))
    (tmp_path / "generation_config.json").unlink()
    assert torch.equal(MssForConditionalGeneration.from_pretrained(tmp_path).generate(**inputs), greedy)


class Recorded(LogitsProcessor, BaseStreamer):
    """Forbids codes from 32 on, and notes what it sees."""

    def __init__(self):
        self.seen, self.streamed, self.ended = [], [], False

    def __call__(self, input_ids, scores):
        self.seen.append((input_ids, scores))
        return scores.masked_fill(torch.arange(scores.shape[-1]) >= 32, -torch.inf)

    def put(self, value):
        self.streamed.append(value)

    def end(self):
        self.ended = True


@pytest.mark.parametrize("name", ["paper", "a3_parallel"])
def test_processors_of_logits_and_streamers_see_every_position(name):
    model, recorded = variant(name), Recorded()
    inputs = window(model)
    tracks = model.config.tracks_per_position
    output = model.generate(
        **inputs, logits_processor=LogitsProcessorList([recorded]), streamer=recorded, output_latents=True
    )
    codes = output.codes
    assert codes.max() < 32 <= model.generate(**inputs).max()
    positions = model.to_segments(codes).flatten(1, 2).unbind(dim=1)  # (2, tracks * Q) each
    assert recorded.ended and len(recorded.streamed) == len(recorded.seen) == 40 / tracks
    assert all(torch.equal(*pair) for pair in zip(recorded.streamed, positions))
    for offset, (ids, scores) in enumerate(recorded.seen[:10]):
        assert scores.shape == (2 * tracks * 4, 64)
        before = torch.stack([codes.new_zeros(2, tracks * 4), *positions[offset % 2 : offset : 2]], dim=-1)[..., 1:]
        assert torch.equal(ids, before.flatten(0, 1))


def test_plain_trainer_trains_and_evaluates(tmp_path):
    model = tiny_model(**masked_options())
    inputs = window(model, batch=8)
    codes = torch.randint(64, (8, 4, 10, 4))
    data = [{"input_features": features, "labels": label} for features, label in zip(inputs["input_features"], codes)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=3e-3,
        gradient_checkpointing=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    frozen = {name: value.clone() for name, value in model.codec.state_dict().items()}
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.95 * before
    predictions = trainer.predict(data[:5]).predictions
    assert [len(values) for values in predictions] == [5, 5]  # logits and masks; no means over a batch
    assert all(torch.equal(value, frozen[name]) for name, value in model.codec.state_dict().items())


def test_configurations_of_half_a_model_are_refused():
    with pytest.raises(ValueError, match=r"name all of .* or none .* got no \['intermediate_size', 'num_hidden_layers"):
        MssConfig(decoder_config={"hidden_size": 320})
    config = MssConfig(decoder_config={"attention_dropout": 0.0})
    assert (config.decoder_config.hidden_size, config.decoder_config.attention_dropout) == (2048, 0.0)
    with pytest.raises(ValueError, match=r"must be a HubertConfig \(`model_type` 'hubert'\), got 'mss_encoder'"):
        MssConfig(conditional_encoder="hubert", encoder_config=MssEncoderConfig())
    with pytest.raises(ValueError, match="got 'hubert'"):
        MssConfig(encoder_config=HubertConfig().to_dict())
    for part in ({"decoder_config": Qwen2Config()}, {"codec_config": DacConfig()}):
        with pytest.raises(ValueError, match=rf"`{next(iter(part))}` must be a (Llama|HCodec)Config"):
            MssConfig(**part)


def test_a_codec_is_called_as_others_are(tmp_path):
    codec = tiny_codec()
    codec.save_pretrained(tmp_path)
    save_feature_extractor(codec.config, tmp_path)
    waveform = np.random.default_rng(0).uniform(-1, 1, 10000).astype(np.float32)
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path)(waveform, sampling_rate=48000, return_tensors="pt")
    assert inputs["input_values"].shape == (1, 1, 11520)
    codes = codec.encode(**inputs)
    same = codec.encode(torch.from_numpy(waveform)[None])
    assert codes.audio_codes.shape == (1, 6, 4) and torch.equal(codes.audio_codes, same.audio_codes)
    assert torch.equal(codes.audio_codes[:, 0::2].mT, codes.acoustic_codes)
    assert torch.equal(codes.audio_codes[:, 1::2].mT, codes.semantic_codes)
    with torch.no_grad():
        audio = codec.decode(audio_codes=codes.audio_codes).audio_values
        assert torch.equal(audio, codec.decode(codes.acoustic_codes, codes.semantic_codes).audio_values)
        output = codec(**inputs)
    assert torch.equal(output.audio_codes, codes.audio_codes)
    torch.testing.assert_close(output.audio_values, audio[..., :11520])  # of latents that went straight through
    for wrong in ({}, {"acoustic_codes": codes.acoustic_codes}, {**codes}):
        with pytest.raises(ValueError, match="either `audio_codes`, or both"):
            codec.decode(**wrong)
    with pytest.raises(ValueError, match=r"\(batch, 1, samples\), the codec is mono, got \(1, 2, 100\)"):
        codec.encode(torch.zeros(1, 2, 100))
    with pytest.raises(ValueError, match=r"full scale 1, got torch\.int16"):
        codec.encode(torch.zeros(1, 100, dtype=torch.int16))


def test_half_precision_changes_no_codes(tmp_path, four_sounds):
    torch.manual_seed(0)
    codec = tiny_codec()
    start_codebooks(codec, four_sounds)
    codec.save_pretrained(tmp_path)
    expected = codec.encode(four_sounds)
    half = HCodecModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.encode(four_sounds).audio_codes, expected.audio_codes)
    assert half.decoder.embed.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode(four_sounds).audio_codes, expected.audio_codes)
    assert half.forward(four_sounds).reconstructed_semantic_features.isfinite().all()
    audio, exact = (one.decode(audio_codes=expected.audio_codes).audio_values for one in (half, codec))
    assert 20 * torch.log10(exact.norm() / (audio - exact).norm()) > 20


def test_products_in_the_quantizer_are_exact_whatever_is_allowed(monkeypatch):
    seen = []

    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
                seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
            return function(*arguments, **(options or {}))

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with Watching():
            nearest_rows(torch.randn(5, 3), torch.randn(4, 3))
        assert seen == [("ieee", "ieee")] and torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


class EightBitLinear(nn.Module):
    """As bitsandbytes': integers that are no dtype to compute in, and the input's dtype at the output."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.abs().max().item() / 127
        self.weight = nn.Parameter((linear.weight / scale + 128).round().to(torch.uint8), requires_grad=False)
        self.scale, self.bias = scale, linear.bias

    def forward(self, x):
        assert x.is_floating_point() and x.dim() <= 3
        return nn.functional.linear(x, (self.weight.to(x.dtype) - 128) * self.scale, self.bias)


def quantised(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, EightBitLinear(child))
        else:
            quantised(child)
    return module


@pytest.mark.parametrize("name", ["told_masks", "codebook_embedding", "a1_hubert"])
@torch.no_grad()
def test_quantised_linear_layers_compute_in_the_models_dtype(name):
    model = variant(name)
    inputs = window(model)
    codes = torch.randint(64, (2, 4, 10, 4))
    expected = model(**inputs, labels=codes).loss
    if name == "a1_hubert":
        quantised(model.adapter), quantised(model.decoder)
        model.adapter = EightBitLinear(model.adapter)
    else:
        quantised(model)
    assert model(**inputs, labels=codes).loss == pytest.approx(expected.item(), rel=0.1)
    assert model.decode_codes(model.generate(**inputs)).isfinite().all()
    if name == "told_masks":
        assert model.masks(inputs["input_features"]).isfinite().all()
