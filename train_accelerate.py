"""Train a HuBERT, the codec or the separator, or a discriminative peer to compare the separator with.

The three stages follow each other; each reads what the one before has left in its output folder:

  accelerate launch train_accelerate.py --stage hubert    --config configs/tiny.yaml --manifests data/rendered \
      --output_dir runs/hubert
  accelerate launch train_accelerate.py --stage codec     --config configs/tiny.yaml --manifests data/rendered \
      --hubert runs/hubert/final --output_dir runs/codec
  accelerate launch train_accelerate.py --stage separator --config configs/tiny.yaml --manifests data/rendered \
      --codec runs/codec/final --output_dir runs/separator

  mss-lm separate song.mp3 --model runs/separator/final

With a published codec only the last one is needed. --stage peer needs none of them: it trains a BS-RoFormer or an
HTDemucs (peer.model.architecture) on the same crops, for comparison.

Everything about recipe and architecture is in the configuration, and every field of it can be set here:
--set separator.optimizer.learning_rate=1e-3. A run that was stopped, killed or ran out of time goes on with --resume,
as if nothing had happened. See docs/training.md.

exit codes: 0 done, or --max_train_minutes are over; 1 failed, 2 wrong usage, 130 a signal ended it before its last step
"""

import argparse
import logging
import sys
import time
from pathlib import Path

STARTED = time.monotonic()  # the imports below take seconds of --max_train_minutes

# ruff: noqa: E402
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, set_seed

import torchaudio_guard_mss  # noqa: F401
from commands_mss.errors import fail
from training_mss.codec_step import CodecStage
from training_mss.configuration import TrainingConfig, load_config
from training_mss.export import publish, write_model_card
from training_mss.hubert_step import HubertStage
from training_mss.inputs import TrainingCrops, validation_crops
from training_mss.loop import RunOptions, Training
from training_mss.mask_step import MaskStage
from training_mss.peer_step import PeerStage
from training_mss.reporting import RunLog
from training_mss.run_state import INTERRUPTED, locked, replacing
from training_mss.separator_step import SeparatorStage
from training_mss.stage import Stage

SAMPLING_RATE = 48000
# Options that name models, and the stages that read them.
READ_BY = {"hubert": ["codec"], "codec": ["masks", "separator"], "init_from": ["codec", "masks", "separator"]}
# Every process must hold all weights: the main one alone writes checkpoints and exports.
SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--stage", choices=["hubert", "codec", "masks", "separator", "peer"], required=True)
    what.add_argument("--config", required=True, metavar="FILE", help="a YAML file, as in configs/")
    what.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change fields of the configuration")
    what.add_argument("--manifests", nargs="+", required=True, metavar="PATH", help="made by `mss-lm prepare`")
    what.add_argument("--hubert", metavar="PATH", help="for the codec: folder or Hub id, e.g. bosonai/hubert_base")
    what.add_argument("--codec", metavar="PATH", help="for masks and separator: folder or Hub id of a whole codec")
    what.add_argument(
        "--init_from", metavar="PATH", help="codec or separator to go on from: folder, Hub id, checkpoint"
    )

    run = parser.add_argument_group("the run")
    run.add_argument("--output_dir", type=Path, required=True, help="checkpoints, log.jsonl, samples, final/")
    run.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the output folder")
    run.add_argument("--max_steps", type=int, help="instead of the configuration's")
    run.add_argument(
        "--max_train_minutes",
        type=float,
        help="be done by then, as far as earlier checkpoints and validations tell how long the last take",
    )
    run.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    run.add_argument("--num_workers", type=int, default=2, help="processes that read crops (default: %(default)s)")
    run.add_argument("--cache_dir", help="for packed copies of lossy files (default: ~/.cache/mss-lm/packed)")

    report = parser.add_argument_group("what it writes")
    report.add_argument("--logging_steps", type=int, default=10, help="default: %(default)s")
    report.add_argument("--validation_steps", type=int, default=1000, help="default: %(default)s")
    report.add_argument("--checkpointing_steps", type=int, default=1000, help="default: %(default)s")
    report.add_argument("--total_limit", type=int, default=2, help="checkpoints to keep (default: %(default)s)")
    report.add_argument("--report_to", nargs="*", default=[], metavar="TRACKER", help="tensorboard, wandb, trackio")
    report.add_argument("--push_to_hub", metavar="REPOSITORY", help="upload the result: organisation/name")
    options = parser.parse_args(arguments)
    if options.max_steps is not None:
        options.set.append(f"{options.stage}.max_steps={options.max_steps}")
    return options


def build_stage(options: argparse.Namespace, config: TrainingConfig) -> Stage:
    """The stage with its models.

    Raises:
        ValueError: a model that the stage needs was not named, or one that it does not read was.
        ImportError: the package of a peer is missing.
    """
    for name, stages in READ_BY.items():
        if getattr(options, name) is not None and options.stage not in stages:
            raise ValueError(f"Stage {options.stage} does not read --{name}, which is for {stages}: leave it out.")
    if options.stage == "hubert":
        return HubertStage(config)
    if options.stage == "codec":
        return CodecStage(config, hubert_path=options.hubert, init_from=options.init_from)
    if options.stage == "peer":
        return PeerStage(config)
    if options.codec is None:
        raise ValueError(f"Stage {options.stage} needs a codec: pass --codec, e.g. the output of --stage codec.")
    stage = MaskStage if options.stage == "masks" else SeparatorStage
    return stage(config, codec_path=options.codec, init_from=options.init_from)


def train(options: argparse.Namespace, started: float) -> int:
    """Train a stage and export it; returns the exit code."""
    run_options = RunOptions(
        output_dir=options.output_dir,
        seed=options.seed,
        resume=options.resume,
        max_train_minutes=options.max_train_minutes,
        started=started,
        checkpointing_steps=options.checkpointing_steps,
        logging_steps=options.logging_steps,
        validation_steps=options.validation_steps,
        total_limit=options.total_limit,
    )
    config = load_config(options.config, options.set)
    stage_config = getattr(config, options.stage)
    accelerator = Accelerator(
        mixed_precision=stage_config.mixed_precision,
        gradient_accumulation_steps=stage_config.gradient_accumulation_steps,
        log_with=options.report_to or None,
        project_dir=options.output_dir,
        step_scheduler_with_optimizer=False,  # one step of the schedule per update, on any number of processes
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.distributed_type in SHARDING:
        raise ValueError(
            f"Accelerate is configured for {accelerator.distributed_type.value}, which divides a model among GPUs, and "
            "this training does not: the paper's model with its optimiser takes about 21 GB, so use plain data "
            "parallel, as in configs/accelerate/eight_gpus.yaml."
        )
    # The codec has LSTMs, which CPUs do not have in bf16; HuBERT was not tried.
    if (
        accelerator.device.type == "cpu"
        and stage_config.mixed_precision == "bf16"
        and options.stage not in ("masks", "separator", "peer")
    ):
        raise ValueError(
            f"On a CPU, bf16 is for masks, separator and peer alone. Add --set {options.stage}.mixed_precision=no"
        )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with locked(accelerator, options.output_dir):
        return train_alone(options, run_options, config, accelerator)


def train_alone(
    options: argparse.Namespace, run_options: RunOptions, config: TrainingConfig, accelerator: Accelerator
) -> int:
    """`train`, once the output folder is ours."""
    stage_config = getattr(config, options.stage)
    torch.set_float32_matmul_precision("high")
    set_seed(options.seed)  # the same initial weights in every process
    if accelerator.trackers or options.report_to:
        accelerator.init_trackers("mss-lm", config={"stage": options.stage, "seed": options.seed})

    stage = build_stage(options, config)
    stage.to(accelerator.device)
    crops = TrainingCrops(
        stage_config.crops,
        options.manifests,
        config.stems,
        SAMPLING_RATE,
        accelerator,
        seed=options.seed,
        num_workers=options.num_workers,
        encode=getattr(stage, "tokenise", None),
        cache_dir=options.cache_dir,
        partly_known=stage.partly_known,
    )
    validation = validation_crops(
        stage_config.crops,
        options.manifests,
        config.stems,
        SAMPLING_RATE,
        accelerator,
        stage_config.validation_crops,
        options.cache_dir,
    )
    log = RunLog(options.stage, options.output_dir, accelerator, SAMPLING_RATE)
    training = Training(stage, crops, validation, accelerator, run_options, log)
    state = training.run()
    final = options.output_dir / "final"
    accelerator.wait_for_everyone()
    if not state.step:
        accelerator.end_training()
        accelerator.print(
            f"{options.stage}: a signal ended it before its first update; nothing is exported.", file=sys.stderr
        )
        return INTERRUPTED
    if accelerator.is_main_process:
        with replacing(final) as folder:
            training.export(folder)
            scores = state.best_scores or log.last_scores
            write_model_card(folder, options.stage, config, state, crops.dataset.songs, scores, options.init_from)
        if options.push_to_hub and not training.interrupted:
            publish(final, options.push_to_hub)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if training.interrupted:
        accelerator.print(
            f"{options.stage}: a signal ended it at step {state.step} of {stage_config.max_steps}, which {final} is "
            "from; --resume goes on.",
            file=sys.stderr,
        )
        return INTERRUPTED
    accelerator.print(f"{options.stage}: {state.step} steps in {state.train_seconds / 60:.1f} min -> {final}")
    return 0


def main(arguments: list[str] | None = None, started: float | None = None) -> int:
    started = time.monotonic() if started is None else started
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    options = parse_arguments(arguments)
    try:
        return train(options, started)
    except Exception as error:
        return fail("train_accelerate.py", error)


if __name__ == "__main__":
    sys.exit(main(started=STARTED))
