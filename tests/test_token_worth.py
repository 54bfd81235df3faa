"""The benchmark of tokens beside masks: it scores as the package filters, and its control hears no tokens."""

import json

import pytest
import torch

from benchmarks import token_worth
from evaluation_mss.calibration import Trial
from evaluation_mss.songs import find_excerpts
from processing_mss import AudioSourceSeparationPipeline, MssFeatureExtractor, MssProcessor
from tests.tiny import masked_options, small_corpus, tiny_model


def test_settings_are_scored_as_the_package_filters(tmp_path, capsys):
    model = tiny_model(num_candidates=2, **masked_options())
    model.generation_config.do_sample = True
    processor = MssProcessor(MssFeatureExtractor(), stems=model.config.stems, window_s=1.28)
    pipe = AudioSourceSeparationPipeline(model=model, processor=processor)
    pipe.save_pretrained(tmp_path / "model")
    corpus = str(small_corpus(tmp_path / "corpus"))
    arguments = ["--model", str(tmp_path / "model"), "--train", corpus, "--validate", corpus, "--work_dir"]
    arguments += [str(tmp_path / "work"), "--num_crops", "8", "--num_steps", "2", "--seeds", "3"]
    assert token_worth.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (excerpt,) = find_excerpts(corpus, "validation", excerpt_s=20.0, equal_loudness=True)
    with torch.no_grad():
        trial = Trial(pipe, excerpt.read(model.config.stems), "filtered")
        expected = {"masked": trial.score(trial.temperature, 0.0), "a = 0.2": trial.score(trial.temperature, 0.2)}
    settings = result["settings"]
    assert settings["masked"]["usdr"]["mean"] == pytest.approx(expected["masked"], abs=1e-4)
    assert settings["a = 0.2 + 0 H^0, H > 0"]["usdr"]["made"] == pytest.approx(expected["a = 0.2"], abs=1e-4)
    assert settings["refiner with tokens, seed 3"]["gains"]["mean"] != 0
    with pytest.raises(ValueError, match="crops of another model"):
        token_worth.write_crops(pipe, b"other weights", [corpus], 8, tmp_path / "work" / "crops")
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="or another number"):
        token_worth.write_crops(pipe, weights, [corpus], 9, tmp_path / "work" / "crops")


def test_a_refiner_begins_with_the_masks_and_its_control_hears_no_tokens():
    log_masks = torch.randn(2, 4, 10, 20).log_softmax(dim=1)
    generated, mixture = torch.randn(2, 4, 10, 20), torch.randn(2, 10, 20)
    for with_tokens in (True, False):
        refiner = token_worth.Refiner(4, with_tokens)
        torch.testing.assert_close(refiner(log_masks, generated, mixture), log_masks)
        torch.nn.init.normal_(refiner.layers[-1].weight)
        same = torch.equal(refiner(log_masks, generated, mixture), refiner(log_masks, generated + 1, mixture))
        assert same is not with_tokens
