"""Put all odd inputs through all ways of separating, and count what becomes of them.

python -m tests.robustness                          everything, into docs/robustness.md
python -m tests.robustness --fast --output -        the fast subset, to the terminal
python -m tests.robustness --ways path --only flac  inputs with "flac" in their name; the document stays as it is
"""

import argparse
import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.robustness.elsewhere import Elsewhere, Watch
from tests.robustness.inputs import WAYS, Input, all_inputs
from tests.robustness.judging import BAD
from tests.robustness.table import document

ROOT = Path(__file__).resolve().parents[2]
START_S = 120
HANG_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="the subset that `make test` runs")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="inputs with one of these in their name or kind")
    parser.add_argument("--output", default=str(ROOT / "docs" / "robustness.md"), help="- for the terminal")
    parser.add_argument("--results", type=Path, help="a file for one JSON line a case")
    options = parser.parse_args()

    chosen = list(all_inputs().values())
    if options.only:
        chosen = [odd for odd in chosen if any(text in (odd.name + "\n" + odd.kind) for text in options.only)]
    cases = [(odd, way) for way in options.ways for odd in chosen if way in odd.ways and (odd.fast or not options.fast)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # so that worker, Space and files go too
    begin, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="robustness-") as folder:
        for number, result in enumerate(tried(cases, Path(folder)), 1):
            results.append(result)
            if result["outcome"] in BAD:
                print(f"{result['outcome']}: {result['name']!r} by {result['way']}: {result['note']}", flush=True)
            if options.results:
                with open(options.results, "a") as file:
                    print(json.dumps(result), file=file)
            if number % 200 == 0:
                print(f"{number} of {len(cases)}, {time.monotonic() - begin:.0f} s", flush=True)
    text = document(results, time.monotonic() - begin)
    if options.output == "-" or options.only:
        print(text)
    else:
        Path(options.output).write_text(text)
    counts = Counter(result["outcome"] for result in results)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    return 1 if any(counts[outcome] for outcome in BAD) else 0


def tried(cases: list[tuple[Input, str]], folder: Path):
    """Results one by one, each a dictionary with name, kind and way, outcome and note."""
    model_dir = save_model(folder / "model")
    with Watch(folder / "elsewhere") as watch, contextlib.ExitStack() as stack:
        trial = stack.enter_context(
            Trial(model_dir, folder / "case", watch.elsewhere, any(w == "space" for _, w in cases))
        )
        for odd, way in cases:
            result = {"name": odd.name, "kind": odd.kind, "way": way, "note": "", **trial.run(odd.name, way)}
            if opened := watch.opened():
                result |= {"outcome": "LEAK", "note": f"opened {opened}; {result['note']}"}
            if result["outcome"] is not None:  # None: cannot be tried here
                yield result


def save_model(folder: Path) -> str:
    """A tiny model whose own output are masks: no language model slows it down."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from processing_mss import AudioSourceSeparationPipeline
    from tests.tiny import masked_options, tiny_model, tiny_processor

    model = tiny_model(**masked_options())
    AudioSourceSeparationPipeline(model=model, processor=tiny_processor(model.config)).save_pretrained(folder)
    return str(folder)


class Trial(contextlib.AbstractContextManager):
    """A worker, and the Space if it is wanted: started again when they hang or crash."""

    def __init__(self, model_dir: str, folder: Path, elsewhere: Elsewhere, with_space: bool):
        self._model_dir, self._folder, self._elsewhere, self._with_space = model_dir, folder, elsewhere, with_space
        self._start()

    def __exit__(self, *exception):
        self._stop()

    def _start(self):
        self._stack = contextlib.ExitStack()
        self._space = None
        arguments = [self._model_dir, str(self._folder), str(self._elsewhere.folder), str(self._elsewhere.port)]
        if self._with_space:
            from tests.space_app import Space

            self._space = self._stack.enter_context(Space(self._model_dir))
            arguments.append(self._space.address)
        # URLs are tried at an address of this machine.
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.robustness.worker", *arguments]
        self._errors = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        self._worker = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        if self._answer(START_S) != "ready":
            self._errors.seek(0)
            raise RuntimeError(f"The worker did not start:\n{self._errors.read()}")

    def _stop(self):
        self._worker.kill()
        self._worker.wait()
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answer(self, seconds: float):
        """The next line; None if none comes in time, "" if none will ever."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._worker.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        line = self._worker.stdout.readline()
        return json.loads(line) if line else ""

    def run(self, name: str, way: str) -> dict:
        log = self._space.log() if way == "space" else ""
        self._worker.stdin.write(json.dumps([name, way]).encode() + b"\n")
        self._worker.stdin.flush()
        answer = self._answer(HANG_S)
        if answer is None:
            answer = {"outcome": "HANG", "note": f"longer than {HANG_S} s"}
        elif answer == "":
            answer = {"outcome": "CRASH", "note": f"the process ended with code {self._worker.wait()}"}
        elif way == "space":
            return self._with_traces(answer, self._space.log()[len(log) :])
        else:
            return answer
        self._stop()
        self._start()
        return answer

    def _with_traces(self, answer: dict, log: str) -> dict:
        """What the app leaves behind."""
        if log.strip():
            answer |= {"outcome": "TRACEBACK", "note": f"log: {log[-500:]}; {answer['note']}"}
        elif left := set(self._space.temporary_files()) - self._space.begin:
            self._space.begin |= left
            answer |= {"outcome": "LEFTOVER", "note": f"temporary files of the app: {left}; {answer['note']}"}
        return answer


if __name__ == "__main__":
    sys.exit(main())
