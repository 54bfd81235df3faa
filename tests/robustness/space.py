"""The Space's app in a process of its own, and one song put through it by its API."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import httpx
import numpy as np
import soundfile

from tests.robustness.judging import outcome_of_failure, text_problem

ROOT = Path(__file__).resolve().parents[2]
START_S = 60
ALLOWED_SECONDS = 60


class Space(contextlib.AbstractContextManager):
    """Runs `space/app.py` as tests/test_space.py does; `temporary_files()` and `log()` tell what it leaves."""

    def __init__(self, model_dir: str):
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        (self.folder / "tmp").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ,
            "GRADIO_ANALYTICS_ENABLED": "0",
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_SHARE": "0",
            "GRADIO_TEMP_DIR": str(self.folder / "uploads"),
            "HF_HUB_OFFLINE": "1",
            "MSS_MAX_SECONDS": str(ALLOWED_SECONDS),
            "MSS_MODEL": model_dir,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.folder / "tmp"),
        }
        with open(self.folder / "log.txt", "w") as output:
            command = [sys.executable, str(ROOT / "space" / "app.py")]
            self._app = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._app.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The Space did not start:\n{self.log()}")
            time.sleep(0.3)
        self.begin = set(self.temporary_files())

    def __exit__(self, *exception):
        self._app.kill()
        self._app.wait()
        self._folder.cleanup()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.address}/config").status_code == 200
        return False

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    def temporary_files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "tmp").iterdir())


def scale_of(total: np.ndarray, reference: np.ndarray) -> float:
    """By what the app has made stems quieter that were beyond full scale; 1 if they can't be compared."""
    if total.shape != reference.shape:
        return 1.0
    return max(1.0, float((total * reference).sum() / np.square(total).sum()))


def by_space(address: str):
    """The song is uploaded and separated; what the page would show as errors and warnings is the answer."""
    client = httpx.Client(base_url=f"{address}/gradio_api", timeout=60)
    config = httpx.get(f"{address}/config").json()
    (run,) = [one for one in config["dependencies"] if one["api_name"] == "separate"]
    names = ["vocals", "drums", "bass", "other"]

    def separate(case) -> tuple[str, str]:
        path = case.made.source
        (uploaded,) = client.post("/upload", files={"files": (path.name, path.read_bytes())}).raise_for_status().json()
        file = {"path": uploaded, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
        session = uuid.uuid4().hex
        request = {"data": [file, names, "masked"], "fn_index": run["id"], "session_hash": session}
        client.post("/queue/join", json=request).raise_for_status()
        warnings, done = [], None
        with client.stream("GET", "/queue/data", params={"session_hash": session}) as answers:
            for line in answers.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "log":
                    warnings.append(message["log"])
                if message.get("msg") == "process_completed":
                    done = message
                    break
        if not done["success"]:
            return outcome_of_failure(case.odd.expected, str(done["output"].get("error")))
        for warning in warnings:
            if problem := text_problem(warning):
                return "TRACEBACK", problem
        read = [soundfile.read(one["path"], always_2d=True) for one in done["output"]["data"][:4]]
        stems, scale = [samples.T for samples, _ in read], 1.0
        if max(np.abs(stem).max(initial=0) for stem in stems) > 0.99 and case.made.reference is not None:
            scale = scale_of(sum(stems), case.made.reference)
        outcome, note = case.judge([scale * stem for stem in stems], read[0][1], steps=scale * 4 * 2**-16)
        if outcome in ("right", "unseen", "warned") and bool(warnings) != (outcome == "warned"):
            return "WRONG", f"{outcome}, but the page warns {warnings}"
        return outcome, note

    return separate
