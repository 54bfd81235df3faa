"""The stages masks and separator one after the other, each for its minutes; stopped and started again at any time.

    python -m training_mss.recipe --config configs/demo.yaml --manifests data/packed --codec pretrained_mss/codec \\
        --output_dir runs/demo --minutes masks=60 separator=30

Every stage is a run of train_accelerate.py in a folder of its own, which resumes exactly. Minutes are those spent in
training, over all calls: a call goes on where the last one was stopped (Ctrl-C, or SIGTERM: a checkpoint follows), and
with more minutes later a stage goes on as well. The separator starts from the best masks. Other arguments are passed to
train_accelerate.py.
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from .run_state import INTERRUPTED, last_state

SCRIPT = Path(__file__).resolve().parents[1] / "train_accelerate.py"
STAGES = ("masks", "separator")
DONE = 0.9  # of a stage's minutes: the rest went into loading and validation
MIN_MINUTES = 0.5  # of a call: loading alone takes that long
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_stage(command: list[str]) -> int:
    """Run a stage and return its exit code; a signal to this process is one to the stage, which ends in order."""
    stages, stopped = [], []

    def on_signal(number: int, frame):
        stopped.append(number)
        for stage in stages:
            stage.send_signal(signal.SIGTERM)

    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as nohup sets it
    previous = {number: signal.signal(number, on_signal) for number in heard}
    try:
        # A session of its own: Ctrl-C and the end of the terminal come from here, once; twice would cost a checkpoint.
        stages.append(subprocess.Popen(command, start_new_session=True))
        status = stages[0].wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return INTERRUPTED if stopped and status == 0 else status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="gets a folder for each stage")
    parser.add_argument("--minutes", nargs="+", required=True, metavar="STAGE=MINUTES", help="masks and separator")
    options, passed_on = parser.parse_known_args(arguments)
    try:
        budgets = {name: float(minutes) for name, minutes in (given.split("=") for given in options.minutes)}
    except ValueError:
        parser.error(f"--minutes takes STAGE=MINUTES, as in masks=60, got {options.minutes}.")
    if unknown := sorted(set(budgets) - set(STAGES)):
        parser.error(f"Stages are {list(STAGES)}, got {unknown}.")
    for stage in filter(budgets.get, STAGES):
        folder = options.output_dir / stage
        spent = last_state(folder).train_seconds / 60
        if spent >= DONE * budgets[stage] and (folder / "final").is_dir():
            continue
        command = [sys.executable, str(SCRIPT), "--stage", stage, "--output_dir", str(folder), "--resume", *passed_on]
        best_masks = options.output_dir / "masks" / "best"
        if stage == "separator" and best_masks.is_dir():
            command += ["--init_from", str(best_masks)]
        status = run_stage([*command, "--max_train_minutes", str(max(budgets[stage] - spent, MIN_MINUTES))])
        if status == INTERRUPTED:
            print(f"{folder}: stopped; the same command goes on.")
        if status != 0:
            return status
    print(f"{options.output_dir}: all stages have had their minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
