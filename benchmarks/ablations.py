"""Train and score a table of ablations and peers: equal data, equal wall-clock time, one command.

    python -m benchmarks.ablations --config configs/ablations.yaml --codec runs/codec/final --manifests data/packed \
        --output_dir runs/ablations [--rows main a3] [--minutes 10] [--jobs 2] [--evaluate_manifests data/musdb18]

Every row is a run of train_accelerate.py in a folder of its own; one that was stopped goes on, for the minutes that it
still has, and one whose final/ is there is skipped: remove its folder to train it again. A row that goes on from the
masks of another one waits for it, which is trained even if --rows leaves it out. With several GPUs, each works
on a row at a time (CUDA_VISIBLE_DEVICES restricts them); on CPUs, --jobs rows at a time share the cores. Then all rows
that are finished are scored by `mss-lm evaluate`, into scores/, on the same devices. A row that fails is reported, and
the others go on.
Prints one JSON line at the end; the exit code is 1 if something failed.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from data_mss.sharding import whole_records
from training_mss.configuration import build, load_config, read_with_bases
from training_mss.run_state import checkpoint_folders, last_state

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "train_accelerate.py"
MSS_LM = [sys.executable, "-m", "commands_mss.main"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CODEC_USERS = {"--codec_roundtrip", "codec", "codec_filtered"}  # `mss-lm evaluate` refuses a codec that nothing needs


@dataclass
class Row:
    """A line of the table.

    Args:
        stage: of train_accelerate.py, "separator", "masks" or "peer".
        changes: what differs from the common configuration, nested as in `configs/`.
        train: more arguments of train_accelerate.py, for this row alone.
        after: name of a row of stage masks, whose best masks this one starts from.
        minutes_share: what this training gets of --minutes; with that of the row before it, at most 1.
    """

    stage: str = "separator"
    changes: dict = field(default_factory=dict)
    train: list[str] = field(default_factory=list)
    after: str | None = None
    minutes_share: float = 1.0

    def __post_init__(self):
        if not 0 < self.minutes_share <= 1:
            raise ValueError(f"`minutes_share` of a row must be above 0 and at most 1, got {self.minutes_share}.")
        if self.stage not in ("separator", "masks", "peer"):
            raise ValueError(f"The stage of a row must be 'separator', 'masks' or 'peer', got {self.stage!r}.")
        if "--set" in self.train:
            raise ValueError(f"What --set changes belongs into the `changes` of a row, got train={self.train}.")


@dataclass
class Table:
    """A file such as `configs/ablations.yaml`, which may name another one as its `base`.

    Args:
        config: of training, beside the file: what all rows start from.
        rows: by name; peers must be called as the baseline that scores them.
        shared: changes that all rows have.
        train, evaluate: more arguments of train_accelerate.py and of `mss-lm evaluate`.
    """

    config: str
    rows: dict[str, Row]
    shared: dict = field(default_factory=dict)
    train: list[str] = field(default_factory=list)
    evaluate: list[str] = field(default_factory=list)

    def __post_init__(self):
        for name, row in self.rows.items():
            if row.after is None:
                continue
            if "--init_from" in [*self.train, *row.train]:
                raise ValueError(
                    f"{name!r} starts from {row.after!r}, so neither its `train` nor the table's may have --init_from."
                )
            allowed = [key for key, other in self.rows.items() if other.stage == "masks" and other.after is None]
            if row.stage == "peer" or row.after not in allowed or row.after == name:
                raise ValueError(
                    f"The row {name!r} of stage {row.stage!r} comes after {row.after!r}: masks and separators may come "
                    f"after a row of stage masks that comes after none, here {allowed}."
                )
            if row.minutes_share + self.rows[row.after].minutes_share > 1:
                raise ValueError(
                    f"{name!r} and {row.after!r}, which it comes after, have more than all of --minutes: their "
                    "`minutes_share` must add up to at most 1."
                )


class Ablations:
    """The table and its folder.

    Raises:
        ValueError: the file, a row's configuration or a name is wrong, a row was trained otherwise before or the one
            that it comes after is gone, or --jobs does not fit the machine.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        if not options.minutes > 0:
            raise ValueError(f"--minutes must be above 0, got {options.minutes:g}.")
        self.devices = devices(options.jobs)
        self.table: Table = build(Table, read_with_bases(Path(options.config)))
        self.config = str(Path(options.config).parent / self.table.config)
        names = list(self.table.rows)
        if unknown := sorted(set(options.rows or []) - set(names)):
            raise ValueError(f"Unknown rows {unknown}; {options.config} has {names}.")
        wanted = options.rows or names
        before = {name: self.table.rows[name].after for name in wanted}
        self.chosen = list(dict.fromkeys(row for name in wanted for row in (before[name], name) if row))
        self.facts = {name: self._facts(name) for name in names}
        for name in names:
            architecture = self.facts[name]["config"]["peer"]["model"]["architecture"]
            if self.table.rows[name].stage == "peer" and name != architecture:
                raise ValueError(
                    f"A peer is called as the baseline that scores it, {architecture!r}; got the row {name!r}."
                )
            self._check(name)

    def folder(self, name: str) -> Path:
        return self.options.output_dir / name

    def is_finished(self, name: str) -> bool:
        return (self.folder(name) / "final" / "README.md").is_file()  # the last file that an export writes

    def overrides(self, name: str) -> list[str]:
        """Changes as `--set` takes them, one for each section."""
        changes = [*self.table.shared.items(), *self.table.rows[name].changes.items()]
        return [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=1e9).strip()}" for key, value in changes]

    def _facts(self, name: str) -> dict:
        """All that a row's result depends on, as JSON gives it back."""
        config, row = load_config(self.config, self.overrides(name)).to_dict(), self.table.rows[name]
        facts = {"stage": row.stage, "minutes": self.options.minutes * row.minutes_share, "codec": self.options.codec}
        facts |= {"jobs": self.options.jobs, "manifests": self.options.manifests}
        facts |= {"train": [*self.table.train, *row.train], "config": config}
        facts |= {"after": self._facts(row.after)} if row.after else {}
        return json.loads(json.dumps(facts))

    def _check(self, name: str):
        if not self.is_finished(name) and not checkpoint_folders(self.folder(name)):
            return
        facts = self.folder(name) / "row.json"
        if not facts.is_file():
            raise ValueError(
                f"{self.folder(name)} holds a training that is none of this table's: choose another --output_dir."
            )
        before = json.loads(facts.read_text())
        if different := [key for key, value in self.facts[name].items() if before.get(key) != value]:
            raise ValueError(
                f"The row {name!r} in {self.folder(name)} was trained with another {' and '.join(different)}, and rows "
                "must be equal but for their change. Remove that folder, or choose another --output_dir."
            )
        after = self.table.rows[name].after
        if after and not self.is_finished(after):
            raise ValueError(
                f"The row {name!r} in {self.folder(name)} comes from masks of {after!r} that are no longer in "
                f"{self.folder(after)}, and others would take their place: put them back, or remove both folders."
            )

    def train(self) -> dict[str, str]:
        """Train the rows that are not finished, one on each device at a time, a row after the one that it comes after;
        errors by row."""
        waiting = [name for name in self.chosen if not self.is_finished(name)]
        for name in self.chosen:
            if name not in waiting:
                print(f"{name}: is there already", flush=True)
        free, errors = list(self.devices), {}
        running: dict[str, tuple[subprocess.Popen, str | None]] = {}
        try:
            while waiting or running:
                unfinished = {*waiting, *running}
                ready = [name for name in waiting if self.table.rows[name].after not in unfinished]
                for name, device in list(zip(ready, free)):
                    waiting.remove(name)
                    free.remove(device)
                    running[name] = self._start(name, device), device
                    where = f" on GPU {device}" if device else ""
                    print(f"{name}: training{where}, see {self.folder(name) / 'train.log'}", flush=True)
                time.sleep(0.1)
                for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
                    process, device = running.pop(name)
                    free.append(device)
                    if process.returncode:
                        errors[name] = last_line(self.folder(name) / "train.log")
                        shutil.rmtree(self.folder(name) / "final", ignore_errors=True)  # of one that was interrupted
                        for after in [after for after in waiting if self.table.rows[after].after == name]:
                            waiting.remove(after)
                            errors[after] = f"not trained, since {name}, which it comes after, failed"
                            print(f"{after}: {errors[after]}", flush=True)
                    print(f"{name}: {errors.get(name, 'done')}", flush=True)
        finally:
            end(process for process, _ in running.values())  # each leaves a checkpoint
            for name in running:
                shutil.rmtree(self.folder(name) / "final", ignore_errors=True)  # had less than its time
        return errors

    def _start(self, name: str, device: str | None) -> subprocess.Popen:
        folder, options, row = self.folder(name), self.options, self.table.rows[name]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "row.json").write_text(json.dumps(self.facts[name], indent=1) + "\n")
        minutes = max(self.facts[name]["minutes"] - last_state(folder).train_seconds / 60, 0)
        command = [sys.executable, str(SCRIPT), "--stage", row.stage, "--config", self.config]
        command += ["--manifests", *options.manifests, "--output_dir", str(folder), "--resume"]
        command += ["--max_train_minutes", f"{minutes:g}", "--set", *self.overrides(name)]
        command += ["--codec", options.codec] if row.stage != "peer" else []
        # Not final/, whose architecture would replace what this row changes.
        command += ["--init_from", str(self.folder(row.after) / "best")] if row.after else []
        command += self.facts[name]["train"]
        with open(folder / "train.log", "a", encoding="utf-8") as log:
            print(f"$ {shlex.join(command)}", file=log, flush=True)
            # A session of its own: Ctrl-C comes from here, once (a second one would cost the checkpoint).
            environment = self._environment(device)
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _environment(self, device: str | None) -> dict[str, str]:
        """Of a process that has a device, or a share of the cores."""
        environment = dict(os.environ) if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
        if self.options.jobs > 1:
            share = str(max(torch.get_num_threads() // self.options.jobs, 1))
            # ViSQOL's numba would give torch all cores again: separations then took five times as long, or more.
            environment |= {"OMP_NUM_THREADS": share, "NUMBA_NUM_THREADS": share}
        return environment

    def evaluate(self) -> dict[str, str]:
        """Score all finished rows, also those that were not chosen now; errors."""
        arguments = self._evaluation()
        if not arguments:
            return {"evaluate": "no row is finished"}
        processes = []
        try:
            for index, device in enumerate(self.devices):
                shard = ["--shard_index", str(index), "--num_shards", str(len(self.devices))]
                environment = self._environment(device)
                environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])])
                command = [*MSS_LM, *arguments, *shard]
                processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
            codes = [process.wait() for process in processes]
        finally:
            end(processes)
        return {"evaluate": f"mss-lm evaluate ended with {codes}, see above"} if any(codes) else {}

    def _evaluation(self) -> list[str]:
        """Arguments of `mss-lm`, none if there is nothing to score."""
        rows = {name: row for name, row in self.table.rows.items() if self.is_finished(name)}
        models = [f"{name}={self.folder(name)}/final" for name, row in rows.items() if row.stage != "peer"]
        peers = [self._baseline(name) for name, row in rows.items() if row.stage == "peer"]
        if not rows:
            return []
        arguments = ["evaluate", "--manifests", *(self.options.evaluate_manifests or self.options.manifests)]
        arguments += ["--output_dir", str(self.options.output_dir / "scores")]
        if CODEC_USERS & set(self.table.evaluate):
            arguments += ["--codec", self.options.codec]
        arguments += ["--model", *models] if models else []
        arguments += ["--baseline", *peers] if peers else []
        return [*arguments, *self.table.evaluate]

    def _baseline(self, name: str) -> str:
        """A peer's files as `--baseline` takes them."""
        final = self.folder(name) / "final"
        if self.facts[name]["config"]["peer"]["model"]["architecture"] == "htdemucs":
            return f"htdemucs={final / 'htdemucs.safetensors'}"
        return f"bs_roformer={final / 'bs_roformer.ckpt'},{final / 'bs_roformer.yaml'}"

    def scores(self) -> dict[str, dict[str, float]]:
        """Means over songs and stems, by system and score."""
        path = self.options.output_dir / "scores" / "summary.json"
        systems = json.loads(path.read_text())["systems"] if path.is_file() else {}
        return {
            system: {
                score: round(cells["mean"]["mean"], 3)
                for score, cells in entry["scores"].items()
                if "mean" in cells and cells["mean"]["mean"] is not None
            }
            for system, entry in systems.items()
        }


def devices(jobs: int) -> list[str | None]:
    """GPUs as CUDA_VISIBLE_DEVICES names them; None stands for the one that training finds by itself, or the CPU.

    Raises:
        ValueError: several jobs, where there is a GPU, or none at all.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if jobs > 1 and names:
        raise ValueError(f"--jobs {jobs} is for CPUs; each of the GPUs {names} has one row at a time.")
    return names if len(names) > 1 else [None] * jobs


def outcome(folder: Path) -> dict:
    """What a row made of its minutes: steps, the last learning rate, and scores of the validation crops at the end.

    Without the loss, which is another quantity where a row changes its weights.
    """
    log = folder / "log.jsonl"
    records = whole_records(log) if log.is_file() else []
    last = {key: value for record in records for key, value in record.items()}  # later records replace earlier ones
    mark, state = "validation/", last_state(folder)
    scores = {key.removeprefix(mark): value for key, value in last.items() if key.startswith(mark)}
    rates = [value for key, value in last.items() if key.startswith("train/learning_rate/")]
    return {
        "steps": state.step,
        "train_minutes": round(state.train_seconds / 60, 2),
        "learning_rate": float(f"{rates[0]:.2g}") if rates else None,
        "validation": {key: round(value, 3) for key, value in scores.items() if key != "loss" and value is not None},
    }


def end(processes: Iterable[subprocess.Popen]):
    """End those that still run, in order, and wait for them, however impatient somebody is."""
    running = [process for process in processes if process.poll() is None]
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS if running}
    for process in running:
        process.terminate()
    for process in running:
        process.wait()
    for number, handler in previous.items():
        signal.signal(number, handler)


def last_line(path: Path) -> str:
    """What a program said last."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "failed without a word"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="a table, such as configs/ablations.yaml")
    parser.add_argument("--codec", required=True, metavar="PATH", help="folder or Hub id of a whole codec")
    parser.add_argument("--manifests", nargs="+", required=True, metavar="PATH", help="to train on")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="a folder for each row, scores/")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these are trained (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, for each row (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, on CPUs (default: %(default)s)")
    parser.add_argument("--evaluate_manifests", nargs="+", metavar="PATH", help="default: those of --manifests")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    for number in STOP_SIGNALS:  # rows are ended in order, as after Ctrl-C
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, signal.default_int_handler)
    try:
        ablations = Ablations(options)
    except ValueError as error:
        print(f"benchmarks.ablations: {error}", file=sys.stderr)
        return 1
    try:
        errors = ablations.train()
        errors |= ablations.evaluate()
    except KeyboardInterrupt:
        print("benchmarks.ablations: interrupted; the same command goes on", file=sys.stderr)
        return 130
    rows = {name: outcome(ablations.folder(name)) for name in ablations.facts if ablations.is_finished(name)}
    facts = {"benchmark": "ablations", "minutes": options.minutes, "rows": rows, "errors": errors}
    print(json.dumps(facts | {"scores": ablations.scores()}))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
