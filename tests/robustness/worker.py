"""Tries inputs, one a line on stdin, and answers with one line each: a process that may hang or crash."""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from tests.robustness.elsewhere import Elsewhere
from tests.robustness.inputs import all_inputs
from tests.robustness.ways import Case, by_array, by_bytes, by_path, command_line


def separators(model_dir: str, address: str | None) -> dict:
    """By way; the Space's only if there is one at `address`."""
    from transformers import pipeline

    import mss_lm  # noqa: F401  (registers the task)

    pipe = pipeline("audio-source-separation", model=model_dir)
    found = {
        "command": command_line(model_dir),
        "path": by_path(pipe),
        "bytes": by_bytes(pipe),
        "array": by_array(pipe),
    }
    if address:
        from tests.robustness.space import by_space

        found["space"] = by_space(address)
    return found


def main(model_dir: str, folder: str, secrets: str, port: str, address: str | None = None):
    torch.set_num_threads(1)  # tiny tensors: more threads wait for each other
    answers = os.fdopen(os.dup(1), "w")
    inputs, elsewhere = all_inputs(), Elsewhere(Path(secrets), int(port))
    ways = separators(model_dir, address)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        name, way = json.loads(line)
        try:
            answer = Case(inputs[name], Path(folder), elsewhere).run(way, ways)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
