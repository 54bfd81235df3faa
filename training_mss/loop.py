"""The one training loop."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, send_to_device
from tqdm.auto import tqdm

from .inputs import TrainingCrops, Validation, seed_of
from .optimization import WeightAverage, build_optimizer, learning_rate_factor, synchronised, trainable
from .reporting import RunLog
from .run_state import (
    RunState,
    checkpoint_folders,
    keep_frozen_weights_out,
    load_learned_weights,
    newest_whole,
    restore_replaced,
    save_checkpoint,
    save_learned_weights,
    set_aside,
    writing,
)
from .stage import Stage, unwrapped
from .throughput import device_peak_flops

logger = get_logger(__name__)


class NonFiniteLossError(RuntimeError):
    """Too many updates in a row, or all of a run, had a loss or gradient that is not finite."""


@dataclass
class RunOptions:
    """How a run is kept, whatever it trains.

    Args:
        output_dir: of checkpoints, logs, samples and the export.
        seed: of everything random.
        resume: go on from the newest checkpoint of `output_dir`, if there is one.
        max_train_minutes: end early enough to be done, checkpoint and export included, by then; counted from
            `started`, a `time.monotonic()`.
        checkpointing_steps, logging_steps, validation_steps: how often.
        total_limit: checkpoints that are kept.
    """

    output_dir: Path
    seed: int = 0
    resume: bool = False
    max_train_minutes: float | None = None
    started: float = 0.0
    checkpointing_steps: int = 1000
    logging_steps: int = 10
    validation_steps: int = 1000
    total_limit: int = 2

    def __post_init__(self):
        for name in ("checkpointing_steps", "logging_steps", "validation_steps", "total_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        minutes = self.max_train_minutes
        if minutes is not None and not minutes >= 0:  # NaN is not
            raise ValueError(f"`max_train_minutes` must be a number of at least 0, or left out, got {minutes}.")


class Training:
    """A stage, its optimisers and where the run stands.

    Raises:
        ValueError: a learning rate is to fall with the minutes of a run that has no end.
    """

    def __init__(
        self,
        stage: Stage,
        crops: TrainingCrops,
        validation: Validation,
        accelerator: Accelerator,
        options: RunOptions,
        log: RunLog,
    ):
        self.stage, self.crops, self.validation = stage, crops, validation
        self.accelerator, self.options, self.log = accelerator, options, log
        self.config = stage.config
        self.state = RunState()
        self.earlier_seconds = 0.0  # of training, before this run
        self.time_share = 0.0  # of all the time that the training has, by the clock of this update
        self.optimizers, self.schedulers = {}, {}
        for name, network in stage.networks.items():
            config = stage.optimizer_config(name)
            if config.final_share is not None and options.max_train_minutes is None:
                raise ValueError(
                    f"The optimizer's final_share={config.final_share} is reached when --max_train_minutes are over: "
                    "pass these, or set final_share to null."
                )
            network = synchronised(network, accelerator.num_processes, accelerator.device)
            optimizer = build_optimizer(network, config)
            factor = learning_rate_factor(config, lambda: self.time_share)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
            prepared = accelerator.prepare(network, optimizer, scheduler)
            stage.networks[name], self.optimizers[name], self.schedulers[name] = prepared
        decay = self.config.ema_decay
        self.plain = {name: unwrapped(network) for name, network in stage.networks.items()}
        self.averages = {name: WeightAverage(network, decay) for name, network in self.plain.items() if decay}
        accelerator.register_for_checkpointing(self.state, *self.averages.values())
        keep_frozen_weights_out(accelerator, stage.networks, stage.frozen)
        self.stop_signal = False
        self.interrupted = False  # a signal to any process ended the run before its last step
        self.closing_seconds = 0.0  # what the longest validation and checkpoint took so far, to be done in time

    def run(self) -> RunState:
        """Train until `max_steps`, `max_train_minutes` or a signal; validate, and leave a checkpoint.

        Raises:
            NonFiniteLossError: after `max_skipped_steps` updates in a row that could not be made, or at the end, if
                none was made.
            ValueError: there are checkpoints and the run is not to go on from them, none of them is whole, or the
                minutes were over before the first update.
            OSError: a checkpoint or log cannot be written.
        """
        self._resume()
        self._set_mode(train=True)
        heard = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
            heard.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.state.step and self.state.num_skipped >= self.state.step:
            raise NonFiniteLossError(
                f"None of the {self.state.step} updates could be made, since no loss or gradient was finite: nothing "
                "was learned, and nothing is exported. Lower the learning rate or look at the data, and start anew in "
                "another --output_dir."
            )
        return self.state

    def _loop(self) -> None:
        micro_steps = self.config.gradient_accumulation_steps
        progress = tqdm(
            total=self.config.max_steps,
            initial=self.state.step,
            desc=self.log.name,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        last_checkpoint = self.state.step if checkpoint_folders(self.options.output_dir) else None
        window_start, window_step, tick = time.monotonic(), self.state.step, time.monotonic()
        totals: dict[str, torch.Tensor] = {}
        # The bar is closed before an error is reported: its line has no end of its own.
        with progress, closing(self.crops.batches(self.state.step * micro_steps)) as batches:
            while self.state.step < self.config.max_steps and not self._must_stop():
                torch.manual_seed(seed_of(self.options.seed, self.state.step, self.accelerator.process_index))
                for name, value in self._update(batches, micro_steps).items():
                    totals[name] = totals[name] + value if name in totals else value
                self.state.step += 1
                self.state.train_seconds += time.monotonic() - tick
                tick = time.monotonic()
                progress.update()
                step, options = self.state.step, self.options
                if step % options.logging_steps == 0 or step == self.config.max_steps:
                    seconds, num_steps = time.monotonic() - window_start, step - window_step
                    metrics = self._averaged(totals, num_steps)
                    self.log.write(step, {**metrics, **self._speed(seconds, num_steps)}, "train")
                    progress.set_postfix(loss=f"{metrics['loss']:.3f}")
                    totals, window_start, window_step = {}, time.monotonic(), step
                if step % options.validation_steps == 0 or step % options.checkpointing_steps == 0:
                    before = time.monotonic()
                    if step % options.validation_steps == 0:
                        self.validate()
                    if step % options.checkpointing_steps == 0:
                        save_checkpoint(self.accelerator, options.output_dir, step, options.total_limit)
                        last_checkpoint = step
                    tick = time.monotonic()
                    self.closing_seconds = max(self.closing_seconds, tick - before)
                    window_start += tick - before
        if not self.state.step:  # nothing was learned: no checkpoint, no validation
            if self.interrupted:
                return
            raise ValueError(
                f"No update was made, so nothing is exported: the {self.options.max_train_minutes:g} minutes of "
                "--max_train_minutes, in which loading models and songs counts, were over before the first. Give more."
            )
        if self.state.step % self.options.validation_steps:
            self.validate()
        if last_checkpoint != self.state.step:
            save_checkpoint(self.accelerator, self.options.output_dir, self.state.step, self.options.total_limit)

    def _update(self, batches: Iterator[dict], micro_steps: int) -> dict[str, torch.Tensor]:
        """One update of the weights; sums of its metrics over the micro-steps, divided by their number."""
        totals: dict[str, torch.Tensor] = {}
        skipped = False
        for micro_step in range(micro_steps):
            batch = next(batches)
            if micro_step == 0:
                self.stage.prepare_step(batch, self.state.step)
            with self.accelerator.accumulate(*self.stage.networks.values()):
                for part in self.stage.step(batch, self.state.step):
                    self.accelerator.backward(part.loss)
                    if self.accelerator.sync_gradients:
                        skipped |= not self._step(part.network)
                    for name, value in part.metrics.items():
                        value = value.detach().float() / micro_steps
                        totals[name] = totals[name] + value if name in totals else value
        self._count_skipped(skipped)
        return totals

    def _step(self, network: str) -> bool:
        """Update a network; False if its gradient is not finite, and nothing was changed.

        The norm is that of the gradient summed over all processes, so that they all decide alike.
        """
        config, optimizer = self.stage.optimizer_config(network), self.optimizers[network]
        parameters = trainable(self.stage.networks[network]).values()
        norm = self.accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        if finite:
            optimizer.step()
            if network in self.averages:
                self.averages[network].update(self.plain[network])
        self.schedulers[network].step()
        optimizer.zero_grad(set_to_none=True)
        return finite

    def _count_skipped(self, skipped: bool) -> None:
        state = self.state
        state.num_skipped += skipped
        state.num_skipped_in_a_row = state.num_skipped_in_a_row + 1 if skipped else 0
        if skipped:
            logger.warning(f"Step {state.step}: loss or gradient is not finite; the update was skipped.")
        if state.num_skipped_in_a_row >= self.config.max_skipped_steps:
            raise NonFiniteLossError(
                f"{state.num_skipped_in_a_row} updates in a row (up to step {state.step}) were not finite. Resume from "
                "the last checkpoint with a lower learning rate, or look at the data."
            )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Score the validation crops, with averaged weights if there are any, and write scores and samples.

        The score that a stage is judged by is the mean over the sources of the songs, and given for each of them. The
        weights that have the best so far are kept in `best/`.
        """
        self._set_mode(train=False)
        scores: dict[str, list[torch.Tensor]] = {}
        samples: dict[str, torch.Tensor] = {}
        with self.averaged_weights():
            for batch in self.validation.batches:
                for name, values in self.stage.validate(send_to_device(batch, self.accelerator.device)).items():
                    scores.setdefault(name, []).append(values.float())
            share = -(-self.config.generated_crops // self.accelerator.num_processes)
            first = {name: values[:share] for name, values in self.validation.batches[0].items()}
            if share:
                heard, samples = self.stage.demonstrate(send_to_device(first, self.accelerator.device))
                scores |= {name: [values.float()] for name, values in heard.items()}
            means = {name: self._mean_over_crops(torch.cat(values)) for name, values in sorted(scores.items())}
            if self.stage.score:
                means |= self._means_of_sources(self.stage.score, torch.cat(scores[self.stage.score]))
                self._keep_best(means)
        self.log.write(self.state.step, means, "validation")
        self.log.write_samples(self.state.step, samples)
        self._set_mode(train=True)
        return means

    def _means_of_sources(self, score: str, values: torch.Tensor) -> dict[str, float]:
        """Of each source, and their mean under the name of the score itself."""
        source = torch.cat([batch["source"] for batch in self.validation.batches]).to(values.device)
        of_source = {
            f"{score}/source/{name}": self._mean_over_crops(torch.where(source == number, values, torch.nan))
            for number, name in enumerate(self.validation.sources)
        }
        return {score: sum(of_source.values()) / len(of_source), **of_source}

    def _keep_best(self, means: dict[str, float]) -> None:
        """Called while the networks have the weights that were scored."""
        best = self.state.best_scores.get(self.stage.score, -math.inf)
        if means[self.stage.score] > best:
            self.state.best_step, self.state.best_scores = self.state.step, means
            if self.accelerator.is_main_process:
                for name, network in self.plain.items():
                    with writing(self._best_weights(name)):
                        save_learned_weights(network, self._best_weights(name), self.stage.frozen)

    def _best_weights(self, network: str) -> Path:
        return self.options.output_dir / "best" / f"{network}.safetensors"

    def _mean_over_crops(self, values: torch.Tensor) -> float:
        """Of all processes; those with fewer crops are filled up with NaN, which does not count."""
        padded = self.accelerator.pad_across_processes(values, pad_index=float("nan"))
        return self.accelerator.gather(padded).nanmean().item()

    def averaged_weights(self) -> ExitStack:
        """A context in which the networks have their averaged weights, if averages are kept."""
        stack = ExitStack()
        for name, average in self.averages.items():
            stack.enter_context(average.in_place_of(self.plain[name]))
        return stack

    def export(self, directory: Path) -> None:
        """Write the trained model: the best weights where a stage keeps them, else the last.

        For the main process alone.
        """
        with self.averaged_weights():
            for name, network in self.plain.items():
                if self.state.best_step:
                    load_learned_weights(network, self._best_weights(name), self.stage.frozen)
            self.stage.export(directory)

    def _resume(self) -> None:
        if self.accelerator.is_main_process:
            restore_replaced(self.options.output_dir)
        self.accelerator.wait_for_everyone()
        folders = checkpoint_folders(self.options.output_dir)
        if folders and not self.options.resume:
            raise ValueError(
                f"{self.options.output_dir} already holds checkpoints up to {folders[-1].name}. Pass --resume to go "
                "on, or choose another --output_dir."
            )
        if folders:
            folder = self._newest_whole()
            self.accelerator.load_state(folder)
            self.earlier_seconds = self.state.train_seconds
            logger.info(f"Resumed from {folder}.")
        self.log.forget_after(self.state.step)

    def _newest_whole(self) -> Path:
        """The checkpoint to go on from, the same for every process; damaged ones that are newer are set aside.

        Raises:
            ValueError: all are damaged; they stay as they are.
        """
        found = newest_whole(self.options.output_dir) if self.accelerator.is_main_process else (None, {})
        folder, damages = broadcast_object_list([*found])
        if folder is None:
            reasons = "; ".join(f"{damaged.name}: {what}" for damaged, what in damages.items())
            raise ValueError(
                f"No checkpoint in {self.options.output_dir / 'checkpoints'} is whole ({reasons}): put back a copy of "
                "one, or start anew in another --output_dir."
            )
        if self.accelerator.is_main_process:
            for damaged, what in damages.items():
                logger.warning(
                    f"{damaged} is damaged ({what}); going on from {folder}. It is kept as {set_aside(damaged).name}."
                )
        return folder

    def _must_stop(self) -> bool:
        """Whether time is up or a signal came, in any process; `time_share` is set, alike in all."""
        limit = self.options.max_train_minutes
        late, share = False, 0.0
        if limit is not None:
            elapsed = time.monotonic() - self.options.started
            late = elapsed + 1.5 * self.closing_seconds > 60 * limit
            whole = self.earlier_seconds + 60 * limit
            share = min((self.earlier_seconds + elapsed) / whole, 1.0) if whole else 1.0
        values = [float(late), float(self.stop_signal), share]
        if self.accelerator.num_processes > 1:  # clocks differ, and weights must not
            means = self.accelerator.reduce(torch.tensor(values, device=self.accelerator.device), reduction="mean")
            values = means.tolist()
        self.interrupted, self.time_share = values[1] > 0, values[2]
        return values[0] > 0 or self.interrupted

    def _on_signal(self, number: int, frame) -> None:
        if self.stop_signal:
            raise KeyboardInterrupt  # the second one does not wait
        logger.warning("Stopping after this step; a checkpoint follows.")
        self.stop_signal = True

    def _set_mode(self, train: bool) -> None:
        for network in self.stage.networks.values():
            network.train(train)

    def _averaged(self, totals: dict[str, torch.Tensor], num_steps: int) -> dict[str, float]:
        means = {name: self.accelerator.reduce(value / num_steps, "mean") for name, value in totals.items()}
        rates = {f"learning_rate/{name}": scheduler.get_last_lr()[0] for name, scheduler in self.schedulers.items()}
        return {**self.stage.describe(means), **rates, "num_skipped": float(self.state.num_skipped)}

    def _speed(self, seconds: float, num_steps: int) -> dict[str, float]:
        crops = num_steps * self.config.gradient_accumulation_steps * self.config.crops.batch_size
        crops_per_second = crops * self.accelerator.num_processes / seconds
        speed = {"crops_per_second": crops_per_second, "seconds_per_step": seconds / num_steps}
        if self.stage.tokens_per_crop:
            speed["tokens_per_second"] = crops_per_second * self.stage.tokens_per_crop
        if self.accelerator.device.type == "cuda":
            speed["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.accelerator.device) / 2**30
        peak = device_peak_flops(self.accelerator.device)
        if peak and self.stage.flops_per_crop:
            achieved = crops_per_second * self.stage.flops_per_crop
            speed["model_flops_utilisation"] = achieved / (peak * self.accelerator.num_processes)
        return {name: value for name, value in speed.items() if math.isfinite(value)}
