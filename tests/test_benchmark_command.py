"""`mss-lm benchmark`, and the formulas that it goes by."""

import json
import os
import sys

import numpy as np
import pytest
import soundfile

from benchmarks.growth import fit_line
from commands_mss.main import main
from evaluation_mss.benchmark import Benchmark, made_song, measure_captured
from evaluation_mss.benchmark_stages import SEED, STAGES, StagedSeparation, write_stems
from evaluation_mss.decode_cost import step_bytes, step_flops
from modeling_mss.cuda_graphs_mss import SWITCH
from processing_mss import AudioSourceSeparationPipeline, MssFeatureExtractor, MssProcessor, write_audio
from tests.test_scnet import scnet_clone
from tests.tiny import masked_options, tiny_config, tiny_model


@pytest.fixture(scope="module")
def pipe():
    """Of a model with all three outputs, that samples several candidates of short windows."""
    model = tiny_model(num_candidates=2, **masked_options())
    model.generation_config.do_sample = True
    processor = MssProcessor(MssFeatureExtractor(), stems=model.config.stems, window_s=0.96)
    return AudioSourceSeparationPipeline(model=model, processor=processor)


def test_one_run_measures_all_outputs_and_a_peer(tmp_path, pipe, capsys):
    pipe.save_pretrained(tmp_path / "model")
    peer = f"scnet={scnet_clone(tmp_path / 'clone')['config']}"
    arguments = ["--model", str(tmp_path / "model"), "--seconds", "2", "--runs", "1", "--threads", "1", "--vs", peer]
    assert main(["benchmark", "--device", "cpu", *arguments]) == 0
    captured = capsys.readouterr()
    assert "filtered, stage by stage" in captured.err and "masked takes " in captured.out
    result = json.loads(captured.out.splitlines()[-1])
    assert result["machine"]["threads"] == 1 and result["model"]["weights"] == "trained"
    assert result["song"]["windows"] == 3
    separations, stages = result["separations"], result["stages"]
    outputs = ["masked", "filtered", "generated"]
    assert sorted(separations) == sorted([*outputs, *(f"{output}_files" for output in outputs), "scnet"])
    for score in separations.values():
        assert all(value > 0 for value in score.values())
        assert score["times_real_time"] == pytest.approx(2 / score["wall_seconds"], rel=1e-3)
    assert list(stages["filtered"]) == list(STAGES) and list(stages["masked"]) == [*STAGES[:3], *STAGES[6:]]
    for output in outputs:
        assert 0.2 < sum(stages[output].values()) / separations[f"{output}_files"]["wall_seconds"] < 5
        ratio = separations[output]["cpu_seconds"] / separations["scnet"]["cpu_seconds"]
        assert result["ratios"]["scnet"][output]["cpu"] == pytest.approx(ratio, rel=1e-3)
    decoding, rates = result["decoding"]["plain"], result["machine_rates"]
    assert result["decoding"].keys() == {"output", "plain"} and result["decoding"]["output"] == "filtered"
    assert (decoding["rows_per_step"], decoding["num_steps"]) == (6, 99)  # two candidates of three windows
    assert decoding["seconds_per_step"] == pytest.approx(stages["filtered"]["steps"] / 99, rel=1e-3)
    assert decoding["tokens_per_second"] == pytest.approx(6 / decoding["seconds_per_step"], rel=1e-3)
    share = decoding["bytes_per_step"] / decoding["seconds_per_step"] / rates["copy_bytes_per_second"]
    assert decoding["bandwidth_share"] == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("output", ["masked", "filtered", "generated"])
def test_stages_are_those_of_the_pipeline(tmp_path, pipe, output):
    song = 0.1 * np.random.default_rng(0).standard_normal((44100 * 8, 2))
    soundfile.write(tmp_path / "song.wav", song, 44100)
    stream = pipe.stream(str(tmp_path / "song.wav"), output=output, seed=SEED)
    layout = stream.labels, stream.sampling_rate, stream.num_samples
    expected = write_stems(stream, *layout, tmp_path / "expected")
    staged = StagedSeparation(pipe.model, pipe.processor, output)(str(tmp_path / "song.wav"), tmp_path / "staged")
    for path, other in zip(staged, expected, strict=True):
        np.testing.assert_allclose(soundfile.read(path)[0], soundfile.read(other)[0], atol=2**-14)


def test_bytes_and_operations_of_a_step():
    config = tiny_config()
    # Two layers of hidden size 64: q, k, v and o, three matrices of the MLP; a head of 4 codebooks, 64 or 65 classes.
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 128) + 64 * 4 * 64.5
    cache = 2 * 2 * 64 * 100  # keys and values of two layers, 100 positions
    assert step_bytes(config, 3, 100, 2) == 2 * (weights + 3 * cache)
    assert step_flops(config, 3, 100) == 3 * (2 * weights + 2 * cache)
    model = tiny_model()
    matrices = sum(weight.numel() for weight in model.decoder.layers.parameters() if weight.dim() == 2)
    heads = model.acoustic_head.weight.numel() + model.semantic_head.weight.numel()
    assert step_bytes(config, 1, 0, 1) == matrices + heads / 2
    parallel = tiny_config(track_generation="parallel")
    assert step_bytes(parallel, 1, 0, 1) == matrices + 4 * heads / 2


def test_what_is_measured_of_graphs(tmp_path, pipe, monkeypatch):
    """What a GPU does with graphs, here without any; if they fail, the rest is not lost."""
    song, plain = made_song(2), {"output": "filtered", "plain": {}}
    write_audio(str(tmp_path / "song.wav"), song, 44100)
    rates = {"copy_bytes_per_second": 1e10, "matmul_flops_per_second": 1e11}
    result = {"decoding": plain, "machine_rates": rates}
    arguments = Benchmark("tiny", pipe, ["filtered"], {}, 2, 1, print), song, str(tmp_path / "song.wav"), result
    measured = measure_captured(*arguments)
    assert measured["decoding"].keys() == {"output", "plain", "captured"} and measured["captured_equal_share"] == 1
    assert measured["decoding"]["captured"]["num_steps"] == 99 and pipe.model.generation_config.do_sample

    def fails(**_):
        raise RuntimeError(os.environ[SWITCH])

    monkeypatch.setattr(pipe.model, "generate", fails)
    assert measure_captured(*arguments) == {"captured_error": "1"}


def test_wrong_usage_says_what_to_do(tmp_path, model_dir, capsys, monkeypatch):
    def fails(*arguments: str) -> str:
        assert main(["benchmark", "--model", model_dir, "--seconds", "2", *arguments]) == 1
        captured = capsys.readouterr()
        assert not captured.out
        return captured.err

    assert "got 'openunmix'" in fails("--vs", "htdemucs,openunmix")
    assert "git clone" in fails("--vs", "scnet")
    assert "what this model has, got ['masked']" in fails("--outputs", "masked")
    assert "--seconds must be from 1 to 600" in fails("--seconds", "1e9")
    assert "leave --model" in fails("--config", "paper")
    for module, package in (("demucs.htdemucs", "demucs"), ("bs_roformer.bs_roformer", "BS-RoFormer")):
        monkeypatch.setitem(sys.modules, module, None)  # not there
        assert f"pip install {package}" in fails("--vs", module.partition(".")[2])


def test_growth_is_a_line():
    line = fit_line([10, 60, 240], [7.5, 32.5, 122.5])
    assert line["cpu_seconds_per_second"] == pytest.approx(0.5) and line["constant_s"] == pytest.approx(2.5)
    assert line["largest_residual_s"] == pytest.approx(0, abs=1e-9) and line["r_squared"] == pytest.approx(1)
    bent = fit_line([0, 1, 2], [0, 0, 3])  # 1.5 x - 0.5: residuals 0.5, -1, 0.5
    assert bent["largest_residual_s"] == pytest.approx(1) and bent["r_squared"] == pytest.approx(1 - 1.5 / 6)
