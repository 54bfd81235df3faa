"""Curves of training runs from their log.jsonl, one picture for all: what fell, what rose, and how long it took.

    python -m benchmarks.training_curves runs/hubert runs/codec runs/separator --output docs/training_curves.png

A row for each run: its training loss over the minutes, then validation scores (`--scores` chooses them; those
that a run does not have are left out). Prints one JSON line with each run's steps, minutes and last scores.
"""

import argparse
import json
from itertools import accumulate
from pathlib import Path

from evaluation_mss.pictures import new_figure, save_png
from training_mss.run_state import last_state

SCORES = ["accuracy", "usdr_ratio_mask"]


def read_log(run: Path) -> list[dict]:
    """Lines of a run, in order.

    Raises:
        FileNotFoundError: no run there.
    """
    with open(run / "log.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def minutes_of_steps(lines: list[dict]) -> dict[int, float]:
    """Minutes of training after each logged step, validation and checkpoints not counted."""
    logged = [line for line in lines if "train/seconds_per_step" in line]
    steps = [line["step"] for line in logged]
    seconds = [
        (step - before) * line["train/seconds_per_step"] for line, step, before in zip(logged, steps, [0, *steps])
    ]
    return {step: total / 60 for step, total in zip(steps, accumulate(seconds))}


def validation_curves(lines: list[dict], scores: list[str]) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each score, and of its stems (`accuracy/vocals`)."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            kind, _, score = name.partition("/")
            if kind == "validation" and score.split("/")[0] in scores and value is not None:
                curves.setdefault(score, []).append((line["step"], value))
    return curves


def draw(runs: list[Path], scores: list[str], output: Path) -> dict[str, dict]:
    """Write the picture; returns what the JSON line says of each run."""
    figure, cells = new_figure(len(runs), 2, (12, 3 * len(runs)), share_x=False)
    facts = {}
    for (left, right), run in zip(cells, runs):
        lines = read_log(run)
        minutes = minutes_of_steps(lines)
        losses = [(minutes[line["step"]], line["train/loss"]) for line in lines if "train/loss" in line]
        left.plot(*zip(*losses), linewidth=1)
        left.set(title=f"{run.name}: training loss", xlabel="minutes")
        curves = validation_curves(lines, scores)
        for name, points in curves.items():
            right.plot([minutes[step] for step, _ in points], [value for _, value in points], marker=".", label=name)
        right.set(title=f"{run.name}: validation", xlabel="minutes")
        if curves:
            right.legend(fontsize="x-small")
        last = {name: round(points[-1][1], 4) for name, points in curves.items()}
        state = last_state(run)
        facts[run.name] = {"steps": state.step, "minutes": round(state.train_seconds / 60, 1), "validation": last}
    save_png(figure, output, dpi=70)
    return facts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of train_accelerate.py")
    parser.add_argument("--scores", nargs="+", default=SCORES, help="of validation (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("training_curves.png"), help="default: %(default)s")
    options = parser.parse_args()
    print(json.dumps({"benchmark": "training_curves", "runs": draw(options.runs, options.scores, options.output)}))


if __name__ == "__main__":
    main()
