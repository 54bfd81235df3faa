"""The codec: equality with the published code, lengths, training of the quantizers, conversion."""

import json
import pickle

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file, save_file
from torch.multiprocessing import start_processes
from transformers import AutoModel, HubertModel

from modeling_mss import HCodecConfig, HCodecModel
from modeling_mss.convert_hcodec import convert, convert_upstream_config, convert_upstream_state_dict
from modeling_mss.quantization_hcodec import HCodecResidualVectorQuantizer
from modeling_mss.semantic_hcodec import HubertFeatures, decimate
from processing_mss.resampling_mss import resample
from tests.make_hcodec_golden import GOLDEN as GOLDEN_FILE
from tests.make_hcodec_golden import draw_inputs, draw_weights
from tests.tiny import tiny_codec, tiny_hubert_config
from training_mss.codebooks import CodebookTraining, kmeans

GOLDEN = json.loads(GOLDEN_FILE.read_text())


@pytest.fixture(scope="module")
def published():
    """A small published codec, converted, its inputs, and what the published code computes of them."""
    weights = draw_weights(GOLDEN["small"]["shapes"])
    codec = HCodecModel(convert_upstream_config(GOLDEN["small"]["config"])).eval()
    codec.load_state_dict(convert_upstream_state_dict(weights))
    inputs = draw_inputs()
    expected = load_file(GOLDEN_FILE.with_suffix(".safetensors"))
    return codec, inputs["waveform"], inputs["semantic_features"].transpose(1, 2), expected


def test_codes_equal_the_published_ones(published):
    codec, waveform, semantic_features, expected = published
    codes = codec.encode(waveform, semantic_features)
    assert torch.equal(codes.acoustic_codes, expected["acoustic_codes"])
    assert torch.equal(codes.semantic_codes, expected["semantic_codes"])


@torch.no_grad()
def test_reconstruction_equals_the_published_one(published):
    codec, waveform, semantic_features, expected = published
    audio = codec.decode(expected["acoustic_codes"], expected["semantic_codes"]).audio_values
    output = codec(waveform, semantic_features)
    # 1e-5: float32 sums in another order; observed 3e-7, and 5e-6 on features of up to 7.6.
    torch.testing.assert_close(audio, expected["reconstruction"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.audio_values, expected["reconstruction"], atol=1e-5, rtol=0)
    reconstructed = output.reconstructed_semantic_features.transpose(1, 2)
    torch.testing.assert_close(reconstructed, expected["reconstructed_semantic_features"], atol=1e-5, rtol=1e-5)


def test_large_checkpoint_maps_one_to_one():
    with torch.device("meta"):
        upstream = {name: torch.empty(shape) for name, shape in GOLDEN["large"]["shapes"].items()}
        codec = HCodecModel(convert_upstream_config(GOLDEN["large"]["config"]))
        default = HCodecModel(HCodecConfig(include_semantic_model=False))
    converted = {name: tensor.shape for name, tensor in convert_upstream_state_dict(upstream).items()}
    assert len(converted) == len(upstream) == 788
    for model in (codec, default):  # the defaults of the configuration are the large model
        assert converted == {name: tensor.shape for name, tensor in model.state_dict().items()}


def published_config(config: HCodecConfig) -> dict:
    """Our configuration as the published YAML says it."""
    half = {"n_fft": config.n_fft, "hop_length": config.stft_hop_length, "target_frame_rate": config.frame_rate}
    widths = {
        side: {
            "dim": getattr(config, f"{side}_hidden_size"),
            "intermediate_dim": getattr(config, f"{side}_intermediate_size"),
            "convnext_layers": getattr(config, f"{side}_convnext_layers"),
            "transformer_layers": getattr(config, f"{side}_transformer_layers"),
            "causal": False,
        }
        for side in ("encoder", "decoder")
    }
    return {
        "sampling_rate": config.sampling_rate,
        "encoder_config": {**widths["encoder"], **half, "dimension": config.latent_size},
        "decoder_config": {**widths["decoder"], **half, "input_channels": 2 * config.latent_size},
        "quantizer_config": {
            "dim": config.latent_size,
            "codebook_size": config.codebook_size,
            "num_quantizers": config.num_codebooks,
            "decay": config.codebook_decay,
            "kmeans_iters": config.kmeans_iterations,
        },
        "semantic_encoder_config": {
            "input_channels": config.semantic_feature_size,
            "encode_channels": config.semantic_encoder_hidden_size,
            "out_channels": config.latent_size,
            "channel_ratios": config.semantic_encoder_channel_ratios,
            "strides": config.semantic_encoder_strides,
        },
        "semantic_decoder_config": {
            "code_dim": config.latent_size,
            "output_channels": config.semantic_feature_size,
            "decode_channels": config.semantic_decoder_hidden_size,
            "channel_ratios": config.semantic_decoder_channel_ratios,
            "strides": config.semantic_decoder_strides,
        },
    }


@pytest.fixture(scope="module")
def other_size() -> HCodecModel:
    """Widths, depths, strides and codebooks unlike those of the fixture."""
    torch.manual_seed(0)
    config = HCodecConfig(
        stride=6,
        latent_size=24,
        num_codebooks=3,
        codebook_size=32,
        kmeans_iterations=7,
        encoder_hidden_size=128,
        encoder_intermediate_size=96,
        encoder_convnext_layers=3,
        encoder_transformer_layers=2,
        decoder_hidden_size=64,
        decoder_intermediate_size=80,
        decoder_convnext_layers=2,
        decoder_transformer_layers=1,
        semantic_feature_size=32,
        semantic_encoder_hidden_size=16,
        semantic_encoder_channel_ratios=[1, 2, 1],
        semantic_encoder_strides=[2, 1, 3],
        semantic_decoder_hidden_size=20,
        semantic_decoder_channel_ratios=[2, 1, 2],
        semantic_decoder_strides=[3, 1, 2],
        include_semantic_model=False,
    )
    return HCodecModel(config).eval()


def test_conversion_of_another_size_from_files_with_hubert(tmp_path, other_size):
    """A .pt file and YAML as published, HuBERT embedded; the names are those of the large checkpoint."""
    ours = other_size.state_dict()
    upstream = {}
    for name in GOLDEN["large"]["shapes"]:
        (key,) = convert_upstream_state_dict({name: torch.empty(1)})
        if key in ours:
            is_codebook = "._codebook." in name and ours[key].dim() > 0
            upstream[name] = ours.pop(key)[None] if is_codebook else ours.pop(key)
    assert ours == {}
    torch.save(upstream, tmp_path / "weights.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(published_config(other_size.config)))
    HubertModel(tiny_hubert_config()).save_pretrained(tmp_path / "hubert")
    convert(tmp_path / "weights.pt", tmp_path / "config.yaml", tmp_path / "codec", str(tmp_path / "hubert"))

    codec = AutoModel.from_pretrained(tmp_path / "codec")
    waveform = torch.randn(1, 4 * codec.config.hop_length)
    with torch.no_grad():
        output = codec(waveform)  # with its own HuBERT
        expected = other_size(waveform, codec.extract_semantic_features(waveform))
    assert torch.equal(output.acoustic_codes, expected.acoustic_codes)
    assert torch.equal(output.semantic_codes, expected.semantic_codes)
    assert torch.equal(output.audio_values, expected.audio_values)


def test_conversion_refuses_what_does_not_fit_and_leaves_nothing(tmp_path, other_size):
    torch.save({"decoder.embed.conv.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    config = published_config(other_size.config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="does not fit"):
        convert(tmp_path / "weights.pt", tmp_path / "config.yaml", tmp_path / "codec")
    torch.save({"weight": print}, tmp_path / "weights.pt")  # a pickle that names a function to call
    with pytest.raises(pickle.UnpicklingError):
        convert(tmp_path / "weights.pt", tmp_path / "config.yaml", tmp_path / "codec")
    del config["decoder_config"]["hop_length"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="lacks 'hop_length'"):
        convert(tmp_path / "weights.pt", tmp_path / "config.yaml", tmp_path / "codec")
    config["encoder_config"]["causal"] = True
    with pytest.raises(ValueError, match="causal"):
        convert_upstream_config(config)
    with pytest.raises(ValueError, match="lacks"):
        convert_upstream_config({"encoder": {}})
    assert not (tmp_path / "codec").exists()


@pytest.mark.parametrize("num_samples", [1, 3839, 3840, 3841, 50000])
@torch.no_grad()
def test_any_length_is_padded_and_cut_back(num_samples):
    codec = tiny_codec()
    waveform = torch.randn(2, num_samples)
    output = codec(waveform)
    assert output.audio_values.shape == (2, num_samples)
    assert output.acoustic_codes.shape == output.semantic_codes.shape == (2, 4, -(-num_samples // 3840))


def test_hubert_features_are_the_compressed_mean_of_all_hidden_states():
    torch.manual_seed(0)
    module = HubertFeatures(tiny_hubert_config())
    waveform = torch.randn(2, 16000)
    features = module(waveform)
    module.train()
    assert torch.equal(module(waveform), features)  # frozen: training mode of the model around it changes nothing
    padded = torch.nn.functional.pad(waveform, (160, 160))
    with torch.no_grad():
        states = module.hubert(padded, output_hidden_states=True).hidden_states
    assert len(states) == 3  # the input of the first layer and the output of each of the two
    mean = sum(states) / 3
    # 1e-5: the mean is summed in another order, and |x|^0.3 is steep at zero.
    torch.testing.assert_close(features, mean.sign() * mean.abs() ** 0.3, atol=1e-5, rtol=0)
    assert features.shape == (2, 50, 32)


def test_decimation_equals_resampling():
    waveform = torch.randn(2, 9600)
    # The processor and the codec may not import each other, so each has its own; they must agree.
    torch.testing.assert_close(decimate(waveform, 3), resample(waveform, 48000, 16000), atol=1e-6, rtol=0)


def test_decoder_only_codec_decodes_and_explains_what_it_cannot():
    codec = tiny_codec()
    codes = codec.encode(torch.randn(1, 7680))
    half = HCodecModel(HCodecConfig(**{**codec.config.to_dict(), "decoder_only": True})).eval()
    half.load_state_dict({name: value for name, value in codec.state_dict().items() if name in half.state_dict()})
    with torch.no_grad():
        expected = codec.decode(codes.acoustic_codes, codes.semantic_codes).audio_values
        assert torch.equal(half.decode(codes.acoustic_codes, codes.semantic_codes).audio_values, expected)
        fewer = half.decode(codes.acoustic_codes[:, :2], codes.semantic_codes[:, :2]).audio_values
    assert fewer.shape == expected.shape and not torch.equal(fewer, expected)
    assert not any(name.startswith(("encoder.", "semantic_model.", "semantic_encoder.")) for name in half.state_dict())
    with pytest.raises(ValueError, match="decoding half"):
        half.encode(torch.randn(1, 7680))
    with pytest.raises(ValueError, match=r"got \(1, 4\)"):
        half.decode(codes.acoustic_codes[..., 0], codes.semantic_codes)


def test_quantizer_learns_its_data_and_revives_dead_codes():
    torch.manual_seed(0)
    config = HCodecConfig(latent_size=8, num_codebooks=2, codebook_size=32, kmeans_iterations=10, decoder_only=True)
    quantizer = HCodecResidualVectorQuantizer(config)
    CodebookTraining(quantizer, config)
    for layer in quantizer.layers:
        torch.nn.init.constant_(layer.embed, 100.0)
    centres = torch.randn(32, 8) * 4
    latents = (centres[torch.randint(32, (4, 256))] + 0.1 * torch.randn(4, 256, 8)).transpose(1, 2)

    quantizer.train()
    error = (quantizer(latents).quantized - latents).square().mean()  # k-means of this very batch
    assert quantizer.layers[0].initialized and error < 0.1 * latents.var()

    with torch.no_grad():  # half of the codebook far away: dead until revived from the batch
        quantizer.layers[0].embed[:16] = 1000.0
        quantizer.layers[0].embed_avg[:16] = 0.0
        quantizer.layers[0].cluster_size[:16] = 0.0
    for _ in range(5):
        quantizer(latents)
    quantizer(latents.repeat(20, 1, 1))  # a larger batch makes no entry look dead: none becomes a vector of it
    vectors = latents.transpose(1, 2).flatten(0, 1)
    assert torch.cdist(quantizer.layers[0].embed, vectors).min(dim=1).values.min() > 1e-3
    quantizer.eval()
    assert len(quantizer(latents).codes[:, 0].unique()) > 24
    assert torch.equal(quantizer.encode(latents), quantizer(latents).codes)
    # 1e-4: the straight-through sum x + (q - x) rounds at the size of x.
    torch.testing.assert_close(
        quantizer.decode(quantizer.encode(latents)), quantizer(latents).quantized, atol=1e-4, rtol=0
    )


def small_quantizer(**options) -> HCodecResidualVectorQuantizer:
    sizes = {"latent_size": 8, "num_codebooks": 3, "codebook_size": 32, "kmeans_iterations": 5}
    config = HCodecConfig(**sizes, **options, decoder_only=True)
    quantizer = HCodecResidualVectorQuantizer(config).train()
    CodebookTraining(quantizer, config)
    return quantizer


def trained_quantizer(batches: torch.Tensor) -> dict[str, torch.Tensor]:
    """Codebooks after one step per batch `(steps, B, D, F)`; the threshold makes revival common."""
    quantizer = small_quantizer(dead_code_threshold=0.5)
    for latents in batches:
        codes = quantizer(latents).codes
    return {**quantizer.state_dict(), "codes": codes}


def train_as_one_of_two(rank: int, folder, batches: torch.Tensor):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)  # as in training, where processes draw different crops
    torch.save(trained_quantizer(batches.chunk(2, dim=1)[rank]), folder / f"{rank}.pt")
    vectors = batches[0].transpose(1, 2).flatten(0, 1)
    torch.save(kmeans(vectors[: rank * 20], 16, 5), folder / f"kmeans_{rank}.pt")  # nothing in the first process
    dist.destroy_process_group()


@pytest.mark.parametrize("frames", [40, 5])  # with 5 there are fewer vectors than entries
def test_two_processes_train_the_codebooks_of_one(tmp_path, frames):
    batches = torch.randn(4, 4, 8, frames, generator=torch.Generator().manual_seed(1))
    batches[2, 3, 0, 0] = torch.nan
    # Forked, since starting Python and importing transformers twice takes longer than all of this file.
    start_processes(train_as_one_of_two, (tmp_path, batches), nprocs=2, start_method="fork")
    torch.manual_seed(0)
    expected = trained_quantizer(batches)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    codes = torch.cat([state.pop("codes") for state in both])
    assert torch.equal(codes, expected.pop("codes"))
    for name, value in expected.items():
        assert torch.equal(both[0][name], both[1][name])
        # 1e-5: the sums over vectors are taken in another order.
        torch.testing.assert_close(both[0][name], value, atol=1e-5, rtol=1e-5)
    first, second = (torch.load(tmp_path / f"kmeans_{rank}.pt") for rank in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1]) and first[1].sum() == 20


def test_kmeans_finds_clusters_and_leaves_out_what_is_not_finite(monkeypatch):
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = centres.repeat(50, 1) + 0.1 * torch.randn(150, 2)
    vectors = torch.cat((torch.tensor([[torch.nan, 0.0], [torch.inf, 1.0]]), vectors))
    torch.manual_seed(3)  # picks one vector of each cluster, without which k-means may stop at a local optimum
    centroids, counts = kmeans(vectors, 3, 10)
    assert torch.equal(counts, torch.full((3,), 50.0))
    assert torch.cdist(centres, centroids).min(dim=1).values.max() < 0.1
    torch.manual_seed(3)
    monkeypatch.setattr("modeling_mss.quantization_hcodec.DISTANCES_AT_ONCE", 100)  # 33 vectors at once
    assert torch.equal(kmeans(vectors, 3, 10)[0], centroids)
    with pytest.raises(ValueError, match="finite"):
        kmeans(vectors[:2], 3, 10)


def test_latents_that_are_not_finite_leave_no_trace_in_the_codebooks():
    torch.manual_seed(0)
    quantizer, expected = small_quantizer(dead_code_threshold=0), small_quantizer(dead_code_threshold=0)
    latents = torch.randn(3, 8, 64)
    quantizer(latents)
    expected.load_state_dict(quantizer.state_dict())
    poisoned = latents.clone()
    poisoned[1, 2] = torch.nan
    poisoned[2, 1, ::2] = torch.inf
    quantizer(poisoned)
    expected(torch.cat((latents[0], latents[2, :, 1::2]), dim=1)[None])  # what is left
    for name, value in quantizer.state_dict().items():
        # 1e-5: the sums over vectors are taken in another order.
        torch.testing.assert_close(value, expected.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_whether_codebooks_have_started_is_read_from_the_device_once():
    torch.manual_seed(0)
    quantizer, latents = small_quantizer(), torch.randn(2, 8, 40)
    fresh = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(latents)
    for layer in quantizer.layers:
        layer.initialized.fill_(False)  # nobody looks any more
    quantizer(latents)
    assert not any(layer.initialized for layer in quantizer.layers)
    quantizer.load_state_dict(fresh)
    quantizer(latents)
    assert all(layer.initialized for layer in quantizer.layers)


def test_quantizer_dropout_sums_the_first_layers_of_each_clip():
    torch.manual_seed(0)
    quantizer, same = small_quantizer(), small_quantizer()
    latents = torch.randn(3, 8, 40)
    quantizer(latents)
    same.load_state_dict(quantizer.state_dict())
    torch.manual_seed(1)
    whole = same(latents)
    expected = quantizer.codebooks.clone()
    torch.manual_seed(1)
    output = quantizer(latents, torch.tensor([1, 2, 3]))
    for clip, layers in enumerate((1, 2, 3)):
        rows = sum(expected[layer, output.codes[clip, layer]] for layer in range(layers))
        # 1e-5: the straight-through sum x + (q - x) rounds at the size of x.
        torch.testing.assert_close(output.quantized[clip], rows.t(), atol=1e-5, rtol=0)
    assert torch.equal(output.codes, whole.codes) and output.commitment_loss == whole.commitment_loss
    assert torch.equal(quantizer.codebooks, same.codebooks)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        quantizer(latents, torch.tensor([1, 2]))
    codec, waveform = tiny_codec(), torch.randn(2, 7680)
    whole, first = codec(waveform), codec(waveform, num_codebooks=torch.tensor([4, 1]))
    assert torch.equal(first.audio_values[0], whole.audio_values[0])
    expected = codec.decode(whole.acoustic_codes[1:, :1], whole.semantic_codes[1:, :1]).audio_values[0]
    torch.testing.assert_close(first.audio_values[1], expected, atol=1e-5, rtol=0)


def test_gradients_pass_straight_through_and_reach_every_parameter():
    codec = tiny_codec().train()
    waveform = torch.randn(2, 7680)
    output = codec(waveform)
    semantic = (output.reconstructed_semantic_features - output.semantic_features).square().mean()
    (output.audio_values.square().mean() + output.commitment_loss + semantic).backward()
    without = [name for name, value in codec.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    assert all(not value.requires_grad for value in codec.semantic_model.parameters())
    latents = torch.randn(1, 16, 5, requires_grad=True)
    codec.acoustic_quantizer(latents).quantized.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


def test_save_and_load_keep_buffers(tmp_path):
    codec = tiny_codec()
    codec.save_pretrained(tmp_path)
    loaded = HCodecModel.from_pretrained(tmp_path)
    assert {name: value.tolist() for name, value in codec.named_buffers()} == {
        name: value.tolist() for name, value in loaded.named_buffers()
    }
    # Files without the windows (they can be recomputed) get them back.
    state = {name: value for name, value in codec.state_dict().items() if not name.endswith("window")}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(HCodecModel.from_pretrained(tmp_path).decoder.window, codec.decoder.window)
