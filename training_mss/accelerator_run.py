"""All stages with one accelerator for some minutes: songs are rendered beside, and what is made comes back.

    python -m training_mss.accelerator_run --minutes 9.3 --output_dir returned

Renders songs on the processor's cores, trains masks beside HuBERT and codec, then the language model, scores them, and
measures the paper's size, each for its minutes of the plan. After every stage all that there is goes to --output_dir,
small enough to be carried home (training_mss/returned.py). A stage that fails costs only those that need it. The same
command, called again, goes on. Ends with one JSON line, which is in summary.json too. See docs/accelerator_run.md.

exit codes: 0 nothing failed (though minutes may have run out), 1 a stage failed, 130 interrupted
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from data_mss.manifest import read_manifest

from .returned import is_whole, send
from .run_plan import Plan, Progress, mean_scores, read_plan, training_outcome
from .run_processes import GRACE_S, ROOT, Processes, StageError
from .run_state import INTERRUPTED, checkpoint_folders, last_state

PLAN = ROOT / "configs" / "accelerator_run" / "plan.yaml"
TRAIN = [sys.executable, str(ROOT / "train_accelerate.py")]
MSS_LM = [sys.executable, "-m", "commands_mss.main"]
STAGE_OF = {"masks_first": "masks", "paper_codec": "codec", "paper_speed": "separator"}  # others are called as theirs
MIN_MINUTES = 0.4  # of a training: loading takes half of that
RESERVE_S = 25.0  # at the end of a call, for sending
HOURS = 20.0  # more than any process renders
MANIFEST = "manifest.jsonl"


class AcceleratorRun:
    """A call: the plan, where it stands, and the processes that run."""

    def __init__(self, plan: Plan, options: argparse.Namespace):
        self.plan, self.options, self.work_dir = plan, options, options.work_dir
        self.deadline = time.monotonic() + 60 * options.minutes - RESERVE_S
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.progress = Progress(self.work_dir)
        self.processes = Processes(self.work_dir)
        self.lock = threading.Lock()
        self.first_songs, self.first_masks, self.all_songs = (threading.Event() for _ in range(3))

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def wait(self, seconds: float, event: threading.Event) -> None:
        """For an event, at most so long, and not into the end of the call."""
        until = time.monotonic() + min(seconds, self.seconds_left())
        while not event.is_set() and not self.processes.ending.is_set() and time.monotonic() < until:
            event.wait(0.2)

    def stage(self, name: str, work: Callable[[], None]) -> bool:
        """Do a stage of the plan, unless that was done before or its minutes are 0; whether it is done now."""
        if self.progress.is_done(name) or not self.plan.minutes[name]:
            return self.progress.is_done(name)
        started, state = time.monotonic(), "done"
        try:
            work()
        except StageError as error:
            state = str(error)
        except Exception as error:
            state = f"failed: {type(error).__name__}: {error}"  # a mistake of ours must not cost what others made
        with self.lock:
            self.progress.note(name, state, time.monotonic() - started)
            print(f"[{self.seconds_left() + RESERVE_S:4.0f} s left] {name}: {state}", file=sys.stderr, flush=True)
            self.send()
        return state == "done"

    # Songs

    def packed(self) -> list[str]:
        """Folders of songs that training can read by now."""
        return [str(path.parent) for path in sorted((self.work_dir / "packed").glob(f"*/{MANIFEST}"))]

    def pack(self, name: str, manifest: str) -> None:
        """Pack what a corpus has by now; raises StageError if nothing of it could be packed."""
        packed = self.work_dir / "packed" / name
        command = [*MSS_LM, "prepare", "pack", manifest, "--output_dir", str(packed)]
        try:
            self.processes.run("pack", command, self.seconds_left())
        except StageError as error:  # songs that are bad are named in the log
            if not (packed / MANIFEST).is_file():
                raise StageError(f"failed to pack {manifest}: {error}") from error

    def pack_rendered(self, names: list[str], pool: ThreadPoolExecutor) -> None:
        """Pack what was rendered by now; one process that fails costs its own songs."""
        packing = [pool.submit(self.pack, name, str(self.work_dir / name)) for name in names]
        for error in filter(None, [done.exception() for done in packing]):
            print(error, file=sys.stderr, flush=True)

    def render(self) -> None:
        """Render on all cores that are given; `first_songs` is set when training may start, `all_songs` at the end."""
        renderers, names = [], []
        try:
            with ThreadPoolExecutor(self.options.render_processes + 1) as pool:
                there = [manifest for manifest in self.plan.manifests if Path(manifest).exists()]
                packing = [pool.submit(self.pack, f"songs{number}", path) for number, path in enumerate(there)]
                for number in range(self.options.render_processes if self.plan.renders else 0):
                    given = shlex.split(self.plan.renders[number % len(self.plan.renders)])
                    names.append(f"rendered{number}")
                    command = [*MSS_LM, "prepare", "render", *given, "--output_dir", str(self.work_dir / names[-1])]
                    seed = self.options.render_seed + number
                    command += ["--hours", str(HOURS), "--seed", str(seed), "--split", "train"]
                    renderers.append(self.processes.start("render", [*command, "--num_workers", "1"]))
                self.watch(renderers, packing, 60 * self.plan.minutes["render"])
                started = time.monotonic()
                for done in packing:
                    done.result()
                self.pack_rendered(names, pool)
                seconds = time.monotonic() - started
                self.first_songs.set()
                self.wait(60 * self.plan.minutes["masks_first"] - seconds, self.first_masks)
                self.processes.end_together(renderers, grace_s=5.0)
                self.pack_rendered(names, pool)
        finally:
            self.processes.end_together(renderers, grace_s=5.0)
        if names and not any((self.work_dir / name / MANIFEST).exists() for name in names):
            raise StageError(f"failed: no song was rendered; see {self.work_dir / 'render.log'}")

    def watch(self, renderers: list[subprocess.Popen], packing: list[Future], seconds: float) -> None:
        """Let them render for a while, but not for nothing: not once all of them, or songs of the plan, have failed."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.seconds_left() > 0 and not self.processes.ending.is_set():
            if renderers and all(process.poll() for process in renderers):
                return
            if any(done.done() and done.exception() for done in packing):
                return
            time.sleep(0.2)

    def songs(self) -> None:
        try:
            self.stage("render", self.render)
        finally:  # others wait for these
            self.first_songs.set()
            self.all_songs.set()

    def source_weights(self) -> list[str]:
        """Of masks: those of the plan whose songs are there."""
        there = {song.source for folder in self.packed() for song in read_manifest(folder) if song.split == "train"}
        weights = {source: weight for source, weight in self.plan.source_weights.items() if source in there}
        return [f"masks.crops.source_weights={json.dumps(weights)}"] if weights else []

    # Trainings

    def train(self, name: str, config: str, given: list[str]) -> None:
        """A training for the minutes that the plan, earlier calls and the end of this one leave it."""
        if not self.packed():
            raise StageError("waits for songs")
        training = "masks" if name == "masks_first" else name  # one training, in two stages
        folder = self.work_dir / training
        spent = last_state(folder).train_seconds / 60
        minutes = min(self.plan.minutes[name] - spent, (self.seconds_left() - GRACE_S) / 60)
        if minutes < MIN_MINUTES:
            if is_whole(folder / "final"):
                return
            raise StageError("no time left")
        command = [*TRAIN, "--stage", STAGE_OF.get(name, name), "--config", config, "--output_dir", str(folder)]
        command += ["--manifests", *self.packed(), "--num_workers", "0", "--resume", *given]
        command += ["--max_train_minutes", f"{minutes:.3f}", *self.plan.arguments(training)]
        # One that is ended because its time is up leaves a model as well.
        self.processes.run(name, command, min(60 * minutes + GRACE_S, self.seconds_left()), done=(0, INTERRUPTED))

    def masks(self) -> None:
        """First on the songs that are there, then on all."""
        for name, songs in (("masks_first", self.first_songs), ("masks", self.all_songs)):
            songs.wait()
            self.stage(name, partial(self.train_masks, name))
            self.first_masks.set()

    def train_masks(self, name: str) -> None:
        given, weights = ["--codec", self.plan.codec], self.source_weights()
        if self.plan.init_from:
            given += ["--init_from", self.plan.init_from]
        self.train(name, self.plan.config, [*given, *(["--set", *weights] if weights else [])])

    def codecs(self) -> None:
        """HuBERT, the codec that hears through it, and one of the paper's sequences, to measure."""
        self.first_songs.wait()
        hubert = ["--hubert", str(self.work_dir / "hubert" / "final")]
        self.stage("hubert", partial(self.train, "hubert", self.plan.config, []))
        if is_whole(self.work_dir / "hubert" / "final"):
            for name in ("codec", "paper_codec"):
                self.stage(name, partial(self.train, name, self.plan.config, hubert))

    def codec(self) -> str:
        """The run's own codec, or that of the plan."""
        own = self.work_dir / "codec" / "final"
        return str(own) if is_whole(own) else self.plan.codec

    def separator(self) -> None:
        folder = self.work_dir / "separator"
        # What masks export has the language model of the separator that they went on from, or one that knows nothing.
        start = self.work_dir / "masks" / ("final" if self.plan.init_from else "best")
        if not start.is_dir():
            raise StageError("waits for masks")
        # What an earlier call has begun goes on over the codec that it was begun with.
        begun_with = folder / "codec.txt"
        if not checkpoint_folders(folder):
            folder.mkdir(parents=True, exist_ok=True)
            begun_with.write_text(self.codec())
        self.train("separator", self.plan.config, ["--codec", begun_with.read_text(), "--init_from", str(start)])

    def score(self) -> None:
        """Each table for what is left of the minutes; songs that were scored stay scored."""
        limit = time.monotonic() + 60 * self.plan.minutes["score"]
        whole = [name for name in ("separator", "masks") if is_whole(self.work_dir / name / "final")]
        if not whole:
            raise StageError("waits for a model")
        name = whole[0]  # a separator has the same masks
        for number, given in enumerate(self.plan.score if name == "separator" else self.plan.score[:1]):
            command = [*MSS_LM, "evaluate", "--manifests", *self.plan.manifests, *shlex.split(self.plan.songs_to_score)]
            command += ["--model", f"{name}={self.work_dir / name / 'final'}"]
            command += ["--output_dir", str(self.work_dir / "scores" / str(number)), *shlex.split(given)]
            if "codec" in given:
                command += ["--codec", self.codec()]
            limit_s = min(limit - time.monotonic(), self.seconds_left())
            # Nothing else runs then.
            self.processes.run("score", command, limit_s, num_threads=self.options.render_processes)

    def paper_speed(self) -> None:
        """The paper's separator, ended by force: its checkpoint has 16 GB and is of no use."""
        folder, codec = self.work_dir / "paper_speed", self.work_dir / "paper_codec" / "final"
        if not is_whole(codec):
            raise StageError("waits for paper_codec")
        if self.seconds_left() < 60 * self.plan.minutes["paper_speed"]:
            raise StageError("no time left")  # most of it goes into loading
        command = [*TRAIN, "--stage", "separator", "--config", str(ROOT / "configs" / "paper.yaml")]
        command += ["--codec", str(codec), "--output_dir", str(folder), "--manifests", *self.packed()]
        process = self.processes.start(
            "paper_speed", [*command, "--num_workers", "0", *self.plan.arguments("paper_speed")]
        )
        try:
            process.wait(60 * self.plan.minutes["paper_speed"])
        except subprocess.TimeoutExpired:
            self.processes.end(process, grace_s=0.0)
        if "seconds_per_step" not in training_outcome(folder):
            raise StageError(f"failed: no update was measured; see {self.work_dir / 'paper_speed.log'}")

    # The whole

    def run(self) -> None:
        """All stages, in an order in which one that is cut off leaves the most."""
        with ThreadPoolExecutor(3) as pool:
            for task in [pool.submit(task) for task in (self.songs, self.masks, self.codecs)]:
                task.result()
        for name, work in (("separator", self.separator), ("score", self.score), ("paper_speed", self.paper_speed)):
            if not self.processes.ending.is_set():
                self.stage(name, work)

    def summary(self) -> dict:
        """Stages, seconds, scores and sizes."""
        trainings = [path.parent.name for path in sorted(self.work_dir.glob("*/log.jsonl"))]
        hours = {}
        for folder in self.packed():
            for song in read_manifest(folder):
                key = f"{song.split} {song.source}"
                hours[key] = round(hours.get(key, 0.0) + song.duration / 3600, 3)
        return {
            "run": "accelerator",
            "stages": self.progress.stages,
            "hours": hours,
            "trainings": {name: training_outcome(self.work_dir / name) for name in trainings},
            "scores": mean_scores(self.work_dir / "scores"),
        }

    def send(self) -> dict:
        """Write what there is to the output folder, and the summary; returns it."""
        options = self.options
        options.output_dir.mkdir(parents=True, exist_ok=True)
        try:
            left_out = send(self.work_dir, options.output_dir, options.part_mib, options.max_mib)
            summary = self.summary() | {"left_out": left_out}
        except Exception as error:  # as when a training is just writing what is read here: the next one sends it
            summary = {"run": "accelerator", "stages": self.progress.stages, "not_sent": repr(error)}
        paths = sorted(options.output_dir.glob("run.tar.*"))
        summary["mib"] = {path.name: round(path.stat().st_size / 2**20, 1) for path in paths}
        (options.output_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        return summary


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--minutes", type=float, default=9.3, help="of this call (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="gets what is to come back")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/accelerator"), metavar="DIR", help="of all stages")
    parser.add_argument("--plan", type=Path, default=PLAN, metavar="FILE", help="default: the one in configs/")
    parser.add_argument("--render_processes", type=int, default=max(1, cores - 2), help="default: all cores but two")
    parser.add_argument(
        "--render_seed", type=int, default=1000, metavar="N", help="of the first process, the next has N + 1"
    )
    parser.add_argument("--part_mib", type=float, default=15.5, help="the most of a file (default: %(default)s)")
    parser.add_argument("--max_mib", type=float, default=62.0, help="the most of all (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        run = AcceleratorRun(read_plan(options.plan), options)
    except (ValueError, OSError) as error:
        print(f"accelerator_run: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: threading.Thread(target=run.processes.end_all).start())
    run.run()
    print(json.dumps(run.send()), flush=True)
    if run.processes.ending.is_set():
        return INTERRUPTED
    return int(any(stage["state"].startswith("failed") for stage in run.progress.stages.values()))


if __name__ == "__main__":
    sys.exit(main())
