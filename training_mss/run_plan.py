"""What an accelerator run is to do (`configs/accelerator_run/plan.yaml`), how far it is, and what its stages found."""

import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from .configuration import build, read_with_bases
from .run_state import last_state

STAGES = ("render", "masks_first", "masks", "hubert", "codec", "separator", "score", "paper_codec", "paper_speed")


@dataclass
class Plan:
    """A file such as `configs/accelerator_run/plan.yaml`.

    Args:
        config: of training, beside the file.
        codec: a whole codec for the masks, and for all if no other can be trained.
        init_from: a separator over `codec` that masks and language model go on from; without it they start anew.
        manifests: songs that are there already.
        source_weights: of masks, by source of the songs.
        renders: arguments of `mss-lm prepare render`, which the processes take in turn.
        minutes: the most that each stage may take, over all calls; 0: it is left out.
        train: more arguments of train_accelerate.py, by stage.
        score: arguments of `mss-lm evaluate`, one run after the other, the first for masks alone too.
        songs_to_score: arguments that all of these have.
    """

    config: str
    codec: str
    manifests: list[str]
    minutes: dict[str, float]
    init_from: str = ""
    source_weights: dict[str, float] = field(default_factory=dict)
    renders: list[str] = field(default_factory=list)
    train: dict[str, str] = field(default_factory=dict)
    score: list[str] = field(default_factory=list)
    songs_to_score: str = ""

    def __post_init__(self):
        if set(self.minutes) != set(STAGES):
            raise ValueError(f"`minutes` must name the stages {list(STAGES)}, got {list(self.minutes)}.")
        if unknown := sorted(set(self.train) - set(STAGES)):
            raise ValueError(f"`train` names {unknown}; stages are {list(STAGES)}.")
        if self.init_from and self.minutes["codec"]:
            raise ValueError("With `init_from`, `minutes.codec` must be 0: a separator goes on over the codec it has.")

    def arguments(self, stage: str) -> list[str]:
        """More arguments of train_accelerate.py for a stage."""
        return shlex.split(self.train.get(stage, ""))


def read_plan(path: Path) -> Plan:
    """Raises ValueError: no such file, or a field that is missing, unknown or of the wrong kind."""
    plan = build(Plan, read_with_bases(path))
    plan.config = str((path.parent / plan.config).resolve())
    return plan


class Progress:
    """What is done, in `progress.json` of the run's folder: it outlives a call."""

    def __init__(self, work_dir: Path):
        self.path = work_dir / "progress.json"
        self.stages = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def is_done(self, stage: str) -> bool:
        return self.stages.get(stage, {}).get("state") == "done"

    def note(self, stage: str, state: str, seconds: float = 0.0) -> None:
        """`state`: "done", or why not. Seconds add up over calls."""
        seconds += self.stages.get(stage, {}).get("seconds", 0.0)
        self.stages[stage] = {"state": state, "seconds": round(seconds, 1)}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.stages, indent=1) + "\n")
        os.replace(temporary, self.path)


def training_outcome(folder: Path) -> dict:
    """What a training did so far: steps, the speed of its later half, and the last scores of validation."""
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    records = [json.loads(line) for line in lines]
    updates = [record for record in records if "train/seconds_per_step" in record]
    later = updates[len(updates) // 2 :]
    outcome = {"steps": max([last_state(folder).step, *(record["step"] for record in updates)])}
    for name in ("seconds_per_step", "tokens_per_second", "model_flops_utilisation", "peak_memory_gib"):
        values = sorted(record[f"train/{name}"] for record in later if f"train/{name}" in record)
        if values:
            outcome[name] = float(f"{values[len(values) // 2]:.4g}")
    scores = [record for record in records if any(name.startswith("validation/") for name in record)]
    if scores:
        last = {name.removeprefix("validation/"): value for name, value in scores[-1].items() if name != "step"}
        outcome["validation"] = {name: value and round(value, 3) for name, value in last.items()}
    return outcome


def mean_scores(scores: Path) -> dict:
    """Means over songs, by system, score and stem, of what `mss-lm evaluate` scored in the folders of `scores`.

    Stems that no song has are left out.
    """
    return {
        system: {
            score: {stem: round(cell["mean"], 3) for stem, cell in cells.items() if cell["mean"] is not None}
            for score, cells in entry["scores"].items()
        }
        for path in sorted(scores.glob("*/summary.json"))
        for system, entry in json.loads(path.read_text())["systems"].items()
    }
