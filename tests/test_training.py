"""Training as a user runs it: the script and its folders. Runs that end early are in `test_resuming.py`."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

import train_accelerate
from modeling_mss import HCodecConfig, HCodecModel, MssConfig, MssForConditionalGeneration
from tests.launching import run_training
from tests.tiny import small_corpus, tiny_codec, tiny_model, tiny_processor, tiny_training_config
from training_mss import half_precision
from training_mss.configuration import load_config
from training_mss.optimization import WeightAverage, learning_rate_factor, synchronised
from training_mss.separator_step import SeparatorStage

ROOT = Path(__file__).resolve().parents[1]


def arguments(stage: str, config: Path, corpus: Path, output_dir: Path, *more: str) -> list[str]:
    settings = ["--stage", stage, "--config", str(config), "--manifests", str(corpus), "--output_dir", str(output_dir)]
    often = ["--logging_steps", "1", "--validation_steps", "4", "--checkpointing_steps", "2", "--num_workers", "0"]
    return [*settings, *often, *more]


def read_log(output_dir: Path, part: str = "train") -> dict[int, dict]:
    """Numbers by step, without those of speed."""
    records = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    timed = ("second", "model_flops")
    return {
        record["step"]: {name: value for name, value in record.items() if not any(word in name for word in timed)}
        for record in records
        if any(name.startswith(part) for name in record)
    }


def losses(record: dict) -> dict:
    """Losses and learning rates; perplexities and some accuracies are no means over crops."""
    names = ("loss", "mel", "stft", "waveform", "commitment", "semantic", "ratio_mask", "learning_rate")
    return {name: value for name, value in record.items() if name.removeprefix("train/").split("/")[0] in names}


def weights_of(output_dir: Path) -> bytes:
    """The exported weights, byte by byte."""
    return (output_dir / "final" / "model.safetensors").read_bytes()


def test_three_stages_on_two_processes_equal_one_process_with_twice_the_batch(tmp_path, config, corpus):
    """Also: each stage reads what the one before has written."""
    # Entries with one vector each would leave residuals of rounding errors alone, and k-means of those is chaotic.
    fewer_entries = "codec.model.codebook_size=8"
    inputs = {
        "hubert": ["hubert.relabel_step=2"],
        "codec": [fewer_entries, "--hubert", f"{tmp_path}/one/hubert/final"],
        "separator": ["--codec", f"{tmp_path}/one/codec/final"],
    }
    for stage, more in inputs.items():
        for name, batch_size, processes in (("one", 4, 1), ("two", 2, 2)):
            (tmp_path / name).mkdir(exist_ok=True)
            slow = f"{stage}.optimizer.learning_rate=2e-4"  # Adam turns gradients near 0 into steps as large as others
            settings = ["--set", f"{stage}.crops.batch_size={batch_size}", slow, *more]
            settings.insert(1, f"separator.generated_crops={processes - 1}")
            run_training(arguments(stage, config, corpus, tmp_path / name / stage, *settings), processes)
        one, two = (read_log(tmp_path / name / stage) for name in ("one", "two"))
        assert list(one) == list(two) == [1, 2, 3, 4]
        for step in one:
            # float32 sums in another order, which Adam carries on. In the codec's stage, a vector between two entries
            # may then choose the other one: a few frames sound different, and masks of a codec that has learned
            # nothing differ by tenths of a dB.
            chosen_anew = stage == "codec" and step > 1
            left_out = ("train/ratio_mask", "train/commitment", "train/loss") if chosen_anew else ()
            ours, theirs = ({k: v for k, v in losses(run[step]).items() if k not in left_out} for run in (one, two))
            assert ours == pytest.approx(theirs, rel=1e-2 if chosen_anew else 1e-4, abs=1e-4), (stage, step)
    assert list((tmp_path / "two" / "separator").rglob("vocals_expected.wav"))
    final = tmp_path / "one" / "separator" / "final"
    assert "CC0-1.0" in (final / "README.md").read_text()
    model = MssForConditionalGeneration.from_pretrained(final)
    codec = HCodecModel.from_pretrained(tmp_path / "one" / "codec" / "final")
    assert torch.equal(model.codec.acoustic_quantizer.codebooks, codec.acoustic_quantizer.codebooks)
    assert not model.config.untrained


def test_compiled_and_in_bf16_a_run_leaves_what_any_run_leaves(tmp_path, config, corpus, codec_dir):
    """Backend "eager" traces the model as "inductor" does, without its minute of compiling."""
    logs, states = [], []
    for name, precision, backend in (("plain", "no", "no"), ("fast", "bf16", "eager")):
        decoding = "separator.generation={do_sample: true, top_p: 0.9}"
        more = ["--codec", codec_dir, "--set", f"separator.mixed_precision={precision}", decoding]
        run_training(
            arguments("separator", config, corpus, tmp_path / name, *more), 1, ACCELERATE_DYNAMO_BACKEND=backend
        )
        logs.append(losses(read_log(tmp_path / name)[4]))
        states.append(load_file(tmp_path / name / "checkpoints" / "step-00000004" / "separator.safetensors"))
        saved = MssForConditionalGeneration.from_pretrained(tmp_path / name / "final").generation_config
        assert (saved.do_sample, saved.top_p) == (True, 0.9)
    assert logs[0] == pytest.approx(logs[1], rel=2e-2)  # bf16 has 8 bits
    assert logs[0] != logs[1]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    assert shapes[0] == shapes[1]


def test_the_codec_is_not_trained_in_bf16_on_cpus(tmp_path, config, corpus):
    more = ["--hubert", str(tmp_path), "--set", "codec.mixed_precision=bf16"]
    with pytest.raises(AssertionError, match=r"codec\.mixed_precision=no"):
        run_training(arguments("codec", config, corpus, tmp_path / "run", *more), 1)


@pytest.mark.parametrize("base", ["paper_a1.yaml", "paper_a2.yaml", "paper_a3.yaml", "paper.yaml"])
def test_every_ablation_trains_through_its_configuration(tmp_path, corpus, base):
    config = tiny_training_config(tmp_path, base)
    codec = tiny_codec(num_codebooks=16)
    codec.save_pretrained(tmp_path / "codec")
    output_dir = tmp_path / "run"
    generated = int(base in ("paper_a1.yaml", "paper_a3.yaml"))  # from another input, and in parallel
    more = ["--codec", str(tmp_path / "codec"), "--max_steps", "6", "--set", f"separator.generated_crops={generated}"]
    assert train_accelerate.main(arguments("separator", config, corpus, output_dir, *more)) == 0
    losses = [record["train/loss"] for record in read_log(output_dir).values()]
    assert losses[-1] < losses[0] - 0.5
    assert 0 <= read_log(output_dir, "validation")[6]["validation/ends_by_itself/other"] <= 1
    model = MssForConditionalGeneration.from_pretrained(output_dir / "final")
    expected = {
        "paper_a1.yaml": ("hubert", "sequential", 2.0),
        "paper_a2.yaml": ("conformer", "sequential", 8.0),
        "paper_a3.yaml": ("conformer", "parallel", 2.0),
        "paper.yaml": ("conformer", "sequential", 2.0),
    }[base]
    config = model.config
    assert (config.conditional_encoder, config.track_generation, config.codebook_loss_weights[0]) == expected
    assert len(list(output_dir.rglob("vocals_generated.wav"))) == 2 * generated  # at steps 4 and 6
    if base == "paper_a1.yaml":  # the codec's HuBERT, and it did not change
        ours, theirs = model.encoder.state_dict(), codec.semantic_model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_fine_tuning_with_other_stems_keeps_what_fits(tmp_path, config, corpus, codec_dir, capsys):
    codec = HCodecModel.from_pretrained(codec_dir)
    masks = {"track_embeddings": True, "mask_head": True, "conv_channels": [8, 12]}
    trained = tiny_model(**masks, stems=["drums", "vocals"])
    whole = codec.state_dict()
    trained.codec.load_state_dict({name: whole[name] for name in trained.codec.state_dict()})
    trained.save_pretrained(tmp_path / "trained")
    tiny_processor(trained.config).save_pretrained(tmp_path / "trained")
    more = ["--codec", codec_dir, "--init_from", str(tmp_path / "trained"), "--max_steps", "1"]
    still = ["--set", "stems=[vocals, other]", "separator.optimizer.learning_rate=0", "separator.ema_decay=null"]
    still += ["separator.model.label_smoothing=0.3", "separator.model.prefix_stride=4"]
    assert train_accelerate.main(arguments("separator", config, corpus, tmp_path / "run", *more, *still)) == 0
    tuned = MssForConditionalGeneration.from_pretrained(tmp_path / "run" / "final")
    assert tuned.config.stems == ["vocals", "other"]
    # What it is trained by is the configuration's, what it is built of its own.
    assert [tuned.config.label_smoothing, tuned.config.prefix_stride] == [0.3, trained.config.prefix_stride] != [0.3, 4]
    assert torch.equal(tuned.track_embedding.weight[0], trained.track_embedding.weight[1])
    assert torch.equal(tuned.encoder.mask_head.out.weight[0], trained.encoder.mask_head.out.weight[1])
    assert torch.equal(tuned.acoustic_head.weight, trained.acoustic_head.weight)
    frozen = ["separator.freeze_encoder=true"]
    assert train_accelerate.main(arguments("separator", config, corpus, tmp_path / "no", *more, *still, *frozen)) == 1
    assert "has masks of ['drums', 'vocals'], not of ['other']" in capsys.readouterr().err
    # and a checkpoint of a run, which lacks the codec, is a start as well
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert not any("codec" in name for name in _names(checkpoint / "separator.safetensors"))


def test_a_separator_stored_in_half_precision_is_trained_in_float32(tmp_path, config):
    codec, trained = tiny_codec().half(), tiny_model().half()
    whole = codec.state_dict()
    trained.codec.load_state_dict({name: whole[name] for name in trained.codec.state_dict()})
    for name, model in (("codec", codec), ("trained", trained)):
        model.save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == "float16"
    for stems in (["vocals", "drums", "bass", "other"], ["vocals", "other"]):
        settings = load_config(config, [f"stems={stems}"])
        stage = SeparatorStage(settings, str(tmp_path / "codec"), init_from=str(tmp_path / "trained"))
        for model in (stage.model, stage.tokenizer):
            assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def test_losses_that_are_not_finite_are_skipped_counted_and_fatal(
    tmp_path, config, corpus, codec_dir, monkeypatch, capsys
):
    forward = MssForConditionalGeneration.forward
    bad_steps = {2, 3}
    calls = []

    def sometimes_infinite(self, **inputs):
        output = forward(self, **inputs)
        if self.training:
            calls.append(None)
            if len(calls) in bad_steps:
                output.loss = output.loss * float("inf")
        return output

    monkeypatch.setattr(MssForConditionalGeneration, "forward", sometimes_infinite)
    more = ["--codec", codec_dir, "--set", "separator.max_skipped_steps=3"]
    assert train_accelerate.main(arguments("separator", config, corpus, tmp_path / "run", *more)) == 0
    assert read_log(tmp_path / "run")[4]["train/num_skipped"] == 2
    bad_steps.update(range(10_000))
    assert train_accelerate.main(arguments("separator", config, corpus, tmp_path / "bad", *more)) == 1
    assert "were not finite" in capsys.readouterr().err
    # Fewer than that, but all there are: nothing was learned.
    assert (
        train_accelerate.main(arguments("separator", config, corpus, tmp_path / "none", *more, "--max_steps", "2")) == 1
    )
    assert "None of the 2 updates could be made" in capsys.readouterr().err
    assert read_log(tmp_path / "none")[2]["train/loss"] is None and not (tmp_path / "none" / "final").exists()


@pytest.mark.parametrize(("samples", "message"), [([np.nan], "it holds NaN or infinity"), ([], "Error opening")])
def test_a_worker_that_cannot_read_a_file_ends_the_run_with_its_name(
    tmp_path, config, codec_dir, capsys, samples, message
):
    corpus, bad = small_corpus(tmp_path / "corpus", songs=1), tmp_path / "corpus" / "bad.wav"
    manifest = corpus / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("0_drums.npy", bad.name))
    soundfile.write(bad, np.array(samples * 150000), 48000, subtype="FLOAT")
    bad.write_bytes(bad.read_bytes() if samples else b"no audio")
    output_dir = tmp_path / "run"
    more = ["--codec", codec_dir, "--num_workers", "2"]
    assert train_accelerate.main(arguments("separator", config, corpus, output_dir, *more)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("train_accelerate.py: error: Cannot ") and f"{bad}: {message}" in error
    assert "Traceback" not in error and not (output_dir / "final").exists()


def test_the_bank_and_the_device_corpus_train_too(tmp_path, config, corpus, codec_dir):
    for mode in ("device", "bank"):
        settings = [f"separator.crops.input={mode}", "separator.crops.bank_size=6", "separator.crops.bank_refresh=2"]
        settings.append(f"separator.generated_crops={int(mode == 'bank')}")
        output_dir = tmp_path / mode
        more = ["--codec", codec_dir, "--report_to", "tensorboard", "--set", *settings]
        assert train_accelerate.main(arguments("separator", config, corpus, output_dir, *more)) == 0
        losses = [record["train/loss"] for record in read_log(output_dir).values()]
        assert losses[-1] < losses[0]
    assert list(output_dir.rglob("events.out.tfevents.*"))
    assert list(output_dir.rglob("vocals_expected.wav"))


def test_wrong_usage_says_what_to_do(tmp_path, config, corpus, codec_dir, capsys, monkeypatch):
    def fails(stage, *more) -> str:
        assert train_accelerate.main(arguments(stage, config, corpus, tmp_path / "run", *more)) == 1
        return capsys.readouterr().err

    assert "--codec" in fails("separator")
    assert "--hubert" in fails("codec")
    assert "Stage codec does not read --codec, which is for ['masks', 'separator']" in fails(
        "codec", "--codec", codec_dir
    )
    assert "is no YAML" in fails("separator", "--set", "separator.optimizer={learning_rate: 1e-3")
    assert "`separator.optimizer` must be a mapping of fields, got 5" in fails(
        "separator", "--set", "separator.optimizer=5"
    )
    assert "allowed are" in fails("separator", "--set", "separator.crops.batchsize=3")
    assert "set do_sample to true" in fails("separator", "--set", "separator.generation.top_p=0.9")
    assert "`separator.max_steps` must be of type int" in fails("separator", "--set", "separator.max_steps=many")
    for name in ("checkpointing_steps", "logging_steps", "validation_steps", "total_limit"):
        assert f"`{name}` must be at least 1, got 0." in fails("separator", f"--{name}", "0")
    assert "`max_train_minutes` must be a number of at least 0, or left out, got nan" in fails(
        "separator", "--max_train_minutes", "nan"
    )
    assert "No update was made" in fails("separator", "--codec", codec_dir, "--max_train_minutes", "0")
    assert not (tmp_path / "run" / "final").exists() and not (tmp_path / "run" / "checkpoints").exists()
    (tmp_path / "run" / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert "--resume" in fails("separator", "--codec", codec_dir)
    assert half_precision.main([str(tmp_path), str(tmp_path / "half")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("half_precision: There is no model.safetensors")
    monkeypatch.setenv("MSS_DEBUG", "1")
    first, *_, last = fails("codec").splitlines()
    assert first.startswith("Traceback") and last.startswith("train_accelerate.py: error: The codec's")
    configured = types.SimpleNamespace(distributed_type=DistributedType.FSDP)
    monkeypatch.setattr(train_accelerate, "Accelerator", lambda **options: configured)
    assert "for FSDP" in (last := fails("codec").splitlines()[-1]) and "eight_gpus.yaml" in last


def test_batch_norms_share_their_statistics_among_gpus_and_are_refused_on_several_cpus():
    model, features = tiny_model(conv_norm="batch_norm"), torch.randn(2, 20, 120)
    names, expected = list(model.state_dict()), model.train().encoder(features)[0]
    for processes, kind in ((1, torch.nn.BatchNorm1d), (2, torch.nn.SyncBatchNorm)):
        model = synchronised(model, processes, torch.device("cuda"))
        assert type(model.encoder.layers[0].convolution.depthwise_norm) is kind
    assert list(model.state_dict()) == names and torch.equal(model.encoder(features)[0], expected)
    with pytest.raises(ValueError, match=r"2 processes on CPUs .* conv_norm: layer_norm"):
        synchronised(model, 2, torch.device("cpu"))
    model.encoder.requires_grad_(False)  # uses the statistics that it has, like every process
    assert synchronised(model, 2, torch.device("cpu")) is model


def test_the_moving_average_is_also_of_the_statistics_of_batch_norms():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
    average, mean = WeightAverage(module, 0.9), module[0].running_mean
    for value in (1.0, 2.0):
        mean.fill_(value)
        average.update(module)
    with average.in_place_of(module):
        assert mean.item() == pytest.approx(2 / 11 * 0.9 + 9 / 11 * 2.0)  # after the first update, 0.9
    assert mean.item() == 2.0
    earlier = {"num_updates": 7, "weights": dict(module.named_parameters())}
    WeightAverage(torch.nn.Sequential(torch.nn.LayerNorm(1)), 0.9).load_state_dict(earlier)
    with pytest.raises(ValueError, match=r"no moving average of .*running_mean"):
        average.load_state_dict(earlier)


def test_a_model_with_batch_norms_trains_with_checkpointing_and_an_average(tmp_path, config, corpus, codec_dir):
    settings = ["separator.model.encoder_config.conv_norm=batch_norm", "separator.gradient_checkpointing=true"]
    settings += ["separator.ema_decay=0.9", "separator.generated_crops=0"]
    more = ["--codec", codec_dir, "--max_steps", "2", "--set", *settings]
    assert train_accelerate.main(arguments("separator", config, corpus, tmp_path / "run", *more)) == 0
    last = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "separator.safetensors")
    exported = MssForConditionalGeneration.from_pretrained(tmp_path / "run" / "final").state_dict()
    norm = "encoder.layers.1.convolution.depthwise_norm"
    assert exported[f"{norm}.num_batches_tracked"] == last[f"{norm}.num_batches_tracked"] == 2
    for kind in ("weight", "running_mean", "running_var"):
        assert exported[f"{norm}.{kind}"].isfinite().all()
        assert not torch.equal(exported[f"{norm}.{kind}"], last[f"{norm}.{kind}"]), kind  # an average


def test_the_learning_rate_is_the_papers():
    factor = learning_rate_factor(load_config(ROOT / "configs" / "paper.yaml").separator.optimizer, time_share=float)
    assert factor(999) == pytest.approx(0.5)
    assert factor(2000) == 1.0
    assert factor(2000 + 34_657) == pytest.approx(0.5, abs=1e-4)  # half-life of 0.99998
    assert factor(1_000_000) == 0.02


def test_the_papers_model_takes_a_step_with_fewer_layers():
    """All widths, tables and heads as in configs/paper.yaml; one layer instead of 8 and 16, and half a second."""
    fields = load_config(ROOT / "configs" / "paper.yaml").separator.model
    fields["decoder_config"]["num_hidden_layers"] = fields["encoder_config"]["num_hidden_layers"] = 1
    codec_config = HCodecConfig(decoder_hidden_size=64, decoder_convnext_layers=1, decoder_transformer_layers=1)
    model = MssForConditionalGeneration(MssConfig(**fields, codec_config=codec_config)).train()
    codes = torch.randint(1024, (1, 4, 12, 16))
    model(input_features=torch.randn(1, 24, 120), audio_codes=codes, return_logits=False).loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(weight.grad is not None and weight.grad.sum().isfinite() for weight in trained.values())
    layer = sum(weight.numel() for name, weight in trained.items() if name.startswith("decoder.layers.0."))
    assert layer == 4 * 2048**2 + 3 * 2048 * 8192 + 2 * 2048


def test_it_packs_and_trains_on_a_machine_without_audio_and_evaluation_packages(tmp_path, config, corpus, codec_dir):
    missing = ["soundfile", "av", "datasets", "gradio", "evaluate", "matplotlib", "tensorboard", "torchaudio", "scipy"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({[*missing, 'librosa']}))\n"  # None: not there
        "import train_accelerate; from data_mss.packing import prepare_packed\n"
        f"assert prepare_packed([{str(corpus)!r}], {str(tmp_path / 'packed')!r}, sampling_rate=48000).written == 3\n"
        "sys.exit(train_accelerate.main(sys.argv[1:]))"
    )
    more = ["--codec", codec_dir, "--max_steps", "2", "--set", "separator.crops.input=device"]
    more.append("separator.generated_crops=1")
    settings = arguments("separator", config, tmp_path / "packed", tmp_path / "run", *more)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code, *settings], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert not list((tmp_path / "run").rglob("*.png"))


def test_operations_are_counted_as_six_per_weight_and_position(config, codec_dir):
    stage = SeparatorStage(load_config(config), codec_path=codec_dir)
    weights = sum(weight.numel() for weight in stage.model.decoder.layers.parameters() if weight.dim() == 2)
    assert stage.flops_per_crop > 6 * weights * stage.tokens_per_crop
    assert all(weight.grad is None for weight in stage.model.parameters())


def test_the_result_is_pushed_to_the_hub(tmp_path, config, corpus, codec_dir, monkeypatch):
    calls = []
    monkeypatch.setattr("training_mss.export.HfApi.create_repo", lambda self, name, **options: calls.append(name))
    monkeypatch.setattr(
        "training_mss.export.HfApi.upload_folder",
        lambda self, folder_path, repo_id, **options: calls.append((repo_id, sorted(os.listdir(folder_path)))),
    )
    more = ["--codec", codec_dir, "--max_steps", "1", "--push_to_hub", "someone/separator"]
    assert train_accelerate.main(arguments("separator", config, corpus, tmp_path / "run", *more)) == 0
    name, (repository, files) = calls
    assert name == repository == "someone/separator"
    assert {"README.md", "config.json", "model.safetensors", "pipeline_mss.py", "modeling_mss.py"} <= set(files)
