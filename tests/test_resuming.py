"""Runs that end early, by a kill, a signal, the clock or a full disk, and go on as if nothing had happened."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import HubertModel

import train_accelerate
from modeling_mss import MssForConditionalGeneration
from tests.launching import run_training, start_training
from tests.test_training import arguments, losses, read_log, weights_of
from tests.tiny import tiny_hubert_config
from training_mss import reporting, run_state
from training_mss.loop import RunOptions, Training
from training_mss.reporting import RunLog
from training_mss.run_state import RunState, last_state, newest_whole, restore_replaced, save_checkpoint


@pytest.mark.parametrize(
    ("stage", "damaged_file", "share"),
    [
        ("hubert", "optimizer.bin", None),  # missing
        ("codec", "codec.safetensors", 0.9),
        ("separator", "custom_checkpoint_0.pkl", 0),
    ],
)
def test_a_run_goes_on_from_the_last_whole_checkpoint_as_if_nothing_had_happened(
    tmp_path, config, corpus, codec_dir, caplog, capsys, stage, damaged_file, share
):
    """As after the machine went down in the last step: a log of all, half a line, and a checkpoint half of zeros."""
    HubertModel(tiny_hubert_config()).save_pretrained(tmp_path / "heard_through")
    inputs = {"hubert": [], "codec": ["--hubert", f"{tmp_path}/heard_through"], "separator": ["--codec", codec_dir]}
    more = [*inputs[stage], "--set", "hubert.relabel_step=3", f"{stage}.generated_crops=1"]
    whole = tmp_path / "whole"
    assert train_accelerate.main(arguments(stage, config, corpus, whole, *more)) == 0

    stopped = shutil.copytree(whole, tmp_path / "stopped")
    shutil.rmtree(stopped / "final")
    with open(stopped / "log.jsonl", "a") as log:
        log.write('{"step": 5, "train/lo' if share else "\0\0\n")
    newest, before = (stopped / "checkpoints" / f"step-0000000{step}" for step in (4, 2))
    if share is None:
        (newest / damaged_file).unlink()
    else:
        content = (newest / damaged_file).read_bytes()
        end = int(share * len(content))
        (newest / damaged_file).write_bytes(content[:end] + bytes(len(content) - end))
    assert last_state(stopped).step == 2
    resumed = arguments(stage, config, corpus, stopped, "--resume", *more)
    assert train_accelerate.main(resumed) == 0
    (warning,) = [record.message for record in caplog.records if "is damaged" in record.message]
    assert str(newest) in warning and f"going on from {before}" in warning and damaged_file in warning

    # Usage of a codec's entries is a mean over steps that starts anew.
    ours, theirs = ({step: losses(record) for step, record in read_log(folder).items()} for folder in (stopped, whole))
    assert ours == theirs and read_log(stopped, "validation") == read_log(whole, "validation")
    assert weights_of(stopped) == weights_of(whole)
    assert {path.name for path in (stopped / "checkpoints").iterdir()} == {
        "step-00000002",
        "step-00000004",
        "step-00000004.damaged-1",
    }

    lines = (stopped / "log.jsonl").read_text().splitlines(keepends=True)
    (stopped / "log.jsonl").write_text("".join(["{\n", *lines]))
    assert train_accelerate.main(resumed) == 1
    assert f"{stopped / 'log.jsonl'}, line 1: a record must be JSON with a step, got '{{'" in capsys.readouterr().err
    (before / "sha256.json").unlink()
    (newest / damaged_file).unlink()
    (newest / damaged_file).mkdir()  # an OSError when it is read
    assert train_accelerate.main(resumed) == 1
    assert (
        f"No checkpoint in {stopped / 'checkpoints'} is whole (step-00000004: {damaged_file} cannot be read: Is a "
        "directory; step-00000002: sha256.json is missing)" in capsys.readouterr().err
    )
    assert last_state(stopped).step == 0 and newest.is_dir()


def test_a_kill_while_a_checkpoint_replaces_another_loses_neither(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    accelerator.register_for_checkpointing(RunState())
    folder, replace = save_checkpoint(accelerator, tmp_path, 1, 2), os.replace

    def killed(old, new):
        if Path(new) == folder:
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        save_checkpoint(accelerator, tmp_path, 1, 2)
    restore_replaced(tmp_path)
    assert newest_whole(tmp_path) == (folder, {})


def test_a_killed_run_of_two_processes_goes_on_as_if_nothing_had_happened(tmp_path, config, corpus, codec_dir):
    dropout = ["separator.model.decoder_config.attention_dropout=0.2", "separator.model.encoder_config.dropout=0.2"]
    settings = ["--set", *dropout, "separator.crops.remix_probability=0.5", "separator.max_steps=8"]
    more = ["--codec", codec_dir, *settings]
    run_training(arguments("separator", config, corpus, tmp_path / "whole", *more), 2)

    killed = tmp_path / "killed"
    running = start_training(arguments("separator", config, corpus, killed, *more), 2)
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/step-*4")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in running:
        process.kill()
    for process in running:
        process.join()
    assert not (killed / "final").exists(), "the run was over before it could be killed"
    resumed = arguments("separator", config, corpus, killed, "--resume", *more)
    run_training(resumed, 2)

    for part in ("train", "validation"):  # the validation uses the moving average of the weights
        assert read_log(killed, part) == read_log(tmp_path / "whole", part)
    assert weights_of(killed) == weights_of(tmp_path / "whole")
    assert len(list(killed.glob("checkpoints/step-*"))) == 2
    assert not list(killed.glob("checkpoints/.*"))


def test_the_run_ends_in_time_with_a_checkpoint_and_its_learning_rate(tmp_path, config, corpus, codec_dir, capsys):
    """The rate falls by the clock over all calls, whatever number of steps they make."""
    by_clock = "separator.optimizer={learning_rate: 1e-3, warmup_steps: 2, final_share: 0.01}"
    more = ["--codec", codec_dir, "--max_steps", "100000", "--set", by_clock, "--max_train_minutes", "0.1"]
    started = time.monotonic()
    assert train_accelerate.main(arguments("separator", config, corpus, tmp_path / "run", *more)) == 0
    assert time.monotonic() - started < 20
    last = max(read_log(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"step-{last:08d}").is_dir()
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 2
    rates = [record["train/learning_rate/separator"] for record in read_log(tmp_path / "run").values()][2:]
    assert rates == sorted(rates, reverse=True) and 1e-5 <= rates[-1] < 2e-4

    more[-1] = "0.08"
    spent = last_state(tmp_path / "run").train_seconds
    assert train_accelerate.main(arguments("separator", config, corpus, tmp_path / "run", "--resume", *more)) == 0
    later = [
        record["train/learning_rate/separator"] for step, record in read_log(tmp_path / "run").items() if step > last
    ]
    assert 1e-5 <= later[-1] < 2e-4 and max(later) <= 1e-3 * 0.01 ** (spent / (spent + 4.8))
    assert train_accelerate.main(arguments("separator", config, corpus, tmp_path / "other", *more[:-2])) == 1
    assert "final_share=0.01 is reached when --max_train_minutes are over" in capsys.readouterr().err


def test_a_run_with_nothing_left_to_do_keeps_its_last_scores(tmp_path):
    log = RunLog("codec", tmp_path, Accelerator(cpu=True))
    for step in (2, 4):
        log.write(step, {"loss": float(step)}, "train")
        log.write(step, {"loss": step / 2}, "validation")
    later = RunLog("codec", tmp_path, log.accelerator)
    later.forget_after(2)
    assert later.last_scores == {"loss": 1.0} and len(later.path.read_text().splitlines()) == 2


def test_processes_go_by_one_clock():
    """Else each would have a learning rate of its own, and soon weights of its own."""
    others = torch.tensor([0.0, 0.0, 0.5])
    reduce = {"mean": lambda values: (values + others) / 2}
    accelerator = SimpleNamespace(
        num_processes=2, device="cpu", reduce=lambda values, reduction: reduce[reduction](values)
    )
    options = RunOptions(Path(), max_train_minutes=1.0, started=time.monotonic() - 42)
    training = SimpleNamespace(accelerator=accelerator, options=options, earlier_seconds=0.0, closing_seconds=0.0)
    training.stop_signal = False
    assert not Training._must_stop(training)
    assert training.time_share == pytest.approx(0.6, abs=0.01)  # 42 of 60 s here, half of them there


def test_a_signal_ends_the_run_with_a_checkpoint_and_its_own_code_and_no_other_run_comes_in_between(
    tmp_path, config, corpus, codec_dir, capsys, monkeypatch
):
    run = arguments("separator", config, corpus, tmp_path / "run", "--codec", codec_dir)
    write = reporting.RunLog.write

    def interrupted(self, step, values, part):
        write(self, step, values, part)
        if step == 1 and part == "train":
            assert train_accelerate.main(run) == 1
            assert f"Another training is writing to {tmp_path / 'run'}: wait" in capsys.readouterr().err
            signal.raise_signal(signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have had it ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(run_state, "LOCK_PATIENCE_S", 0)
            patch.setattr(reporting.RunLog, "write", interrupted)
            assert train_accelerate.main(run) == 130
    finally:
        signal.signal(signal.SIGHUP, before)
    final = tmp_path / "run" / "final"
    said = f"separator: a signal ended it at step 1 of 4, which {final} is from; --resume goes on."
    assert capsys.readouterr().err.splitlines()[-1] == said and (final / "README.md").is_file()
    assert train_accelerate.main([*run, "--resume"]) == 0 and sorted(read_log(tmp_path / "run")) == [1, 2, 3, 4]


def test_a_full_disk_leaves_nothing_half_and_the_run_goes_on_when_there_is_room(
    tmp_path, config, corpus, codec_dir, capsys, monkeypatch
):
    output_dir = tmp_path / "run"
    more = ["--codec", codec_dir, "--max_steps", "2", "--resume"]

    def error_of_run() -> str:
        assert train_accelerate.main(arguments("separator", config, corpus, output_dir, *more)) == 1
        return capsys.readouterr().err.splitlines()[-1]

    def half_a_file(model, directory, **options):
        (Path(directory) / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def no_room(*given, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    save, calls = torch.save, []

    def second_fails(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # torch's words
        return save(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(reporting, "open", no_room, raising=False)
        assert f"Cannot write {output_dir / 'log.jsonl'} (No space left on device; " in error_of_run()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", second_fails)
        assert f"Cannot write {output_dir}/checkpoints/step-00000002 ([enforce fail" in error_of_run()
    assert not list((output_dir / "checkpoints").iterdir())
    (output_dir / "checkpoints" / ".step-00000001.tmp").mkdir()  # of a run that was killed
    with monkeypatch.context() as patch:
        patch.setattr(MssForConditionalGeneration, "save_pretrained", half_a_file)
        assert f"Cannot write {output_dir / 'final'} (Error while serializing: I/O error: No space" in error_of_run()
    names = {path.name for path in output_dir.glob("[!.]*")} | {path.name for path in output_dir.glob("checkpoints/*")}
    assert names == {"log.jsonl", "checkpoints", "step-00000002"}
    assert train_accelerate.main(arguments("separator", config, corpus, output_dir, *more)) == 0
    assert (output_dir / "final" / "README.md").is_file() and sorted(read_log(output_dir)) == [1, 2]
