"""Checkpoints that do not fit are refused with one sentence, where random weights would make noise."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_mss import HCodecModel, MssForConditionalGeneration
from processing_mss import AudioSourceSeparationPipeline, MssFeatureExtractor, MssProcessor
from tests.tiny import masked_options, tiny_codec, tiny_config, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A separator that has every part, as it is saved."""
    path = tmp_path_factory.mktemp("whole")
    tiny_model(**masked_options()).save_pretrained(path)
    return path


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def edit(path: Path, **values) -> None:
    """Change a JSON file; `codec_config__stride` is the field of a part."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        *parts, last = name.split("__")
        part = content
        for key in parts:
            part = part[key]
        part[last] = value
    path.write_text(json.dumps(content))


def refusal(folder: Path, kind=MssForConditionalGeneration) -> str:
    """What is said instead of loading the model."""
    with pytest.raises(ValueError) as caught:
        kind.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decoder_config__num_hidden_layers": 3}, "9 missing (decoder.layers.2.input_layernorm.weight, "),
        ({"encoder_config__num_hidden_layers": 1}, "unknown (encoder.layers.1."),
        ({"stems": ["vocals", "drums", "bass", "other", "guitar"]}, "track_embedding.weight"),
        ({"codec_config__decoder_convnext_layers": 2}, "missing (codec.decoder.convnext.1."),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_named(folder, values, message):
    edit(folder / "config.json", **values)
    assert message in refusal(folder)


def test_renamed_and_additional_weights_are_named(folder):
    state = load_file(folder / "model.safetensors")
    state["head.weight"] = state.pop("acoustic_head.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 missing (acoustic_head.weight) and 1 unknown (head.weight)" in refusal(folder)


def test_a_codec_is_checked_too(tmp_path):
    tiny_codec().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", encoder_convnext_layers=2)
    assert "missing (encoder.convnext.1." in refusal(tmp_path, HCodecModel)


def test_other_shapes_are_named_unless_they_are_asked_for(folder):
    edit(folder / "config.json", decoder_config__intermediate_size=256)
    assert "6 of another shape (decoder.layers.0.mlp.down_proj.weight, " in refusal(folder)
    model, report = MssForConditionalGeneration.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.decoder.layers[0].mlp.up_proj.weight.shape == (256, 64)
    assert len(report["mismatched_keys"]) == 6 and not report["missing_keys"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickled"])
def test_files_of_weights_that_are_none_are_named(folder, damage):
    path = folder / "model.safetensors"
    contents = {
        "truncated": path.read_bytes()[:-100],
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
        "pickled": pickle.dumps({"weight": 1}),
    }
    path.write_bytes(contents[damage])
    assert "damaged or no safetensors" in refusal(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_generation_config_is_named(folder, content):
    (folder / "generation_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"generation_config\.json in .* is no JSON object"):
        MssForConditionalGeneration.from_pretrained(folder)


def test_pickles_are_not_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        MssForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "got 'bert'"),
        ({"stems": []}, "`stems` must name at least one track"),
        ({"stems": "vocals"}, "'stems' with value 'vocals'"),
        ({"mask_temperature": float("nan")}, "positive `mask_temperature`"),
        ({"codec_config__sampling_rate": 0}, "`sampling_rate` must be a whole number from 1 to 1000000, got 0"),
        ({"codec_config__sampling_rate": "48000"}, "'sampling_rate' expected int, got str"),
        ({"codec_config__stft_hop_length": 0}, "`stft_hop_length` must be"),
        ({"codec_config__stft_hop_length": 1920}, "`n_fft` and `stft_hop_length` must be even"),
        ({"codec_config__decoder_hidden_size": -64}, "`decoder_hidden_size` must be"),
        ({"codec_config__num_codebooks": 0}, "`num_codebooks` must be"),
        ({"codec_config__decoder_convnext_layers": 10**6}, "`decoder_convnext_layers` must be"),
        ({"codec_config__decoder_hidden_size": 32768}, "The codec's decoder may have 5e+09 parameters"),
        ({"codec_config__semantic_encoder_strides": [-2, 1, -2]}, "product of `semantic_encoder_strides`"),
        ({"codec_config__semantic_encoder_channel_ratios": [1]}, "one ratio per stride (3)"),
        (
            {
                "codec_config__stride": 1,
                "codec_config__semantic_encoder_strides": [1, 1, 1],
                "codec_config__semantic_decoder_strides": [1, 1, 1],
            },
            "`codec_config.stride` must be a multiple",
        ),
        ({"encoder_config": 5}, "'encoder_config' with value 5"),
        ({"encoder_config__hidden_size": [32]}, "'hidden_size' expected int"),
        ({"encoder_config__num_attention_heads": 0}, "`encoder_config.num_attention_heads` must be"),
        ({"encoder_config__num_hidden_layers": 10**6}, "from 1 to 256, got 1000000"),
        ({"encoder_config__rope_theta": -1.0}, "`encoder_config.rope_theta` must be positive"),
        ({"decoder_config__num_attention_heads": 0}, "`decoder_config.num_attention_heads` must be"),
        ({"decoder_config__num_key_value_heads": 0}, "`decoder_config.num_key_value_heads` must be"),
        ({"decoder_config__hidden_size": "64"}, "got '64'"),
        ({"decoder_config__num_hidden_layers": 10**6}, "`decoder_config.num_hidden_layers` must be"),
        ({"decoder_config__hidden_size": 32768, "decoder_config__num_hidden_layers": 8}, "`decoder_config` may have"),
    ],
)
def test_configurations_that_cannot_be_are_named(folder, values, message):
    (folder / "model.safetensors").unlink()  # before there is memory to be taken for weights
    edit(folder / "config.json", **values)
    assert message in refusal(folder)


def test_a_folder_without_a_configuration_is_no_checkpoint(folder):
    (folder / "config.json").unlink()
    assert "`model_type` 'mss' is needed, got None" in refusal(folder)


def test_the_hubert_of_a_codec_is_checked(tmp_path):
    tiny_codec().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", semantic_model_config__num_hidden_layers=10**6)
    assert "`semantic_model_config.num_hidden_layers` must be" in refusal(tmp_path, HCodecModel)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_rms": 0.0}, "`input_rms`"),
        ({"input_rms": "loud"}, "`input_rms`"),
        ({"window_s": float("nan")}, "`window_s`"),
        ({"window_s": -4.0}, "`window_s`"),
        ({"window_s": 0.01}, "`window_s` must be at least"),
        ({"overlap": 1.0}, "`overlap`"),
        ({"overlap": "half"}, "`overlap`"),
        ({"code_hop_length": 0}, "`code_hop_length`"),
        ({"stems": []}, "`stems`"),
        ({"stems": "vocals"}, "`stems`"),
        ({"stems": ["vocals", "vocals"]}, "`stems`"),
        ({"feature_extractor__sampling_rate": 0}, "`sampling_rate`"),
        ({"feature_extractor__sampling_rate": 48000.5}, "`sampling_rate`"),
        ({"feature_extractor__hop_length": 0}, "`hop_length`"),
        ({"feature_extractor__feature_size": -120}, "`feature_size`"),
        ({"feature_extractor__n_fft": 512}, "`n_fft` must be at least `hop_length`"),
    ],
)
def test_processors_that_cannot_be_are_named(tmp_path, values, message):
    tiny_processor().save_pretrained(tmp_path)
    edit(tmp_path / "processor_config.json", **values)
    with pytest.raises(ValueError, match=message):
        MssProcessor.from_pretrained(tmp_path)


OTHER_STEMS = ["drums", "vocals", "bass", "other"]


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({}, {"stems": OTHER_STEMS}, "the stems"),
        ({"sampling_rate": 44100}, {}, "the sampling rate.* 44100 in the processor, 48000 in the model"),
        ({}, {"code_hop_length": 1920}, "the samples of a code frame"),
        ({"feature_size": 80}, {}, "the mel bands: 80 in the processor, 120 in the model"),
        ({"hop_length": 480}, {}, "the frames of features per code frame: 8"),
        ({"features": "waveform"}, {}, "what the model hears"),
    ],
)
def test_a_processor_of_another_model_is_refused(features, options, message):
    processor = MssProcessor(MssFeatureExtractor(**features), **options)
    with pytest.raises(ValueError, match=message):
        AudioSourceSeparationPipeline(model=tiny_model(), processor=processor)


def test_other_models_and_rates_of_a_hubert_are_refused():
    config = tiny_config(conditional_encoder="hubert")
    processor = MssProcessor(MssFeatureExtractor(features="waveform", waveform_rate=8000))
    with pytest.raises(ValueError, match=r"the rate of its input.* 8000 in the processor, 16000 in the model"):
        processor.check_model(config)
    with pytest.raises(ValueError, match="'hcodec'"):
        processor.check_model(config.codec_config)
