"""One song put through the Space by its API."""

import json
import uuid

import httpx
import numpy as np
import soundfile

from tests.robustness.judging import outcome_of_failure, text_problem


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
        request = {"data": [file, names, "masked", 1, -1, "wav"], "fn_index": run["id"], "session_hash": session}
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
        _, *tracks = done["output"]["data"][0]["tracks"]
        read = [soundfile.read(track["file"]["path"], always_2d=True) for track in tracks]
        stems, scale = [samples.T for samples, _ in read], 1.0
        if max(np.abs(stem).max(initial=0) for stem in stems) > 0.99 and case.made.reference is not None:
            scale = scale_of(sum(stems), case.made.reference)
        outcome, note = case.judge([scale * stem for stem in stems], read[0][1], steps=scale * 4 * 2**-16)
        if outcome in ("right", "unseen", "warned") and bool(warnings) != (outcome == "warned"):
            return "WRONG", f"{outcome}, but the page warns {warnings}"
        return outcome, note

    return separate
