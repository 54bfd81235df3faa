"""Write tests/dnsmos_golden.json: what Microsoft's own program gives for two clips that are made here.

Run it as `python -m tests.make_dnsmos_golden DNS-Challenge`, where the argument is a clone of
https://github.com/microsoft/DNS-Challenge; its DNSMOS/dnsmos_local.py and models run as they are. It needs pandas.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
GOLDEN = Path(__file__).with_name("dnsmos_golden.json")


def synthetic_speech(seconds: float, noise: float) -> np.ndarray:
    """A buzz through three moving formants, in syllables; `(T,)` float32 at 16 kHz, with white noise added."""
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(140 + 25 * np.sin(2 * np.pi * 0.7 * time)) / RATE
    formants = [600 + 200 * np.sin(5 * time), 1500 + 500 * np.sin(3 * time + 1), 2600 + 200 * np.sin(2 * time)]
    voice = np.zeros_like(time)
    for harmonic in range(1, 30):
        frequency = harmonic * 140
        gain = sum(np.exp(-(((frequency - formant) / 180) ** 2)) for formant in formants) + 0.02
        voice += gain / harmonic**0.5 * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 3 * time), 0, 1) * (np.sin(2 * np.pi * 0.4 * time) > -0.5)
    signal = 0.1 * voice * syllables + noise * np.random.default_rng(0).standard_normal(len(time))
    return signal.astype(np.float32)


CLIPS = {  # played twice, to reach 9.01 s; several places to average over
    "short": {"seconds": 4.6, "noise": 0.0005},
    "long": {"seconds": 12.5, "noise": 0.01},
}


def main(clone: str):
    folder = Path(clone) / "DNSMOS"
    spec = importlib.util.spec_from_file_location("dnsmos_local", folder / "dnsmos_local.py")
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    models = [str(folder / "DNSMOS" / name) for name in ("sig_bak_ovr.onnx", "model_v8.onnx")]
    compute = original.ComputeScore(*models)
    golden = {}
    for name, options in CLIPS.items():
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            soundfile.write(file.name, synthetic_speech(**options), RATE, subtype="FLOAT")
            scores = compute(file.name, RATE, False)
        golden[name] = {f"dnsmos_{key.lower()}": float(scores[key]) for key in ("SIG", "BAK", "OVRL")}
    GOLDEN.write_text(json.dumps(golden, indent=4) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
