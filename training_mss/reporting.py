"""What a run writes down: `log.jsonl`, trackers, and samples to listen to and look at."""

import importlib
import json
import math
import os
import wave
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from processing_mss import log_mel_spectrogram

from .run_state import writing


class RunLog:
    """Log of a run; everything is written by the main process.

    Args:
        name: of the run's kind, for progress bars and trackers.
        output_dir: `log.jsonl` gets a line per record (`{"step": ..., "train/loss": ..., ...}`), `samples/` audio.
        sampling_rate: of samples, in hertz (Hz).
    """

    def __init__(self, name: str, output_dir: Path, accelerator: Accelerator, sampling_rate: int = 48000):
        self.name = name
        self.accelerator = accelerator
        self.sampling_rate = sampling_rate
        self.path = output_dir / "log.jsonl"
        self.sample_dir = output_dir / "samples"
        self.last_scores: dict[str, float] = {}

    def forget_after(self, step: int) -> None:
        """Drop lines after `step`, and a damaged last one: those a killed run wrote after its last checkpoint. The last
        scores are then those of the last line that has some.

        Raises:
            ValueError: another line is damaged.
        """
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
        kept = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                is_kept = record["step"] <= step
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise ValueError(
                        f"{self.path}, line {number}: a record must be JSON with a step, got {line[:80]!r}; remove the "
                        "line, and --resume goes on."
                    ) from error
                continue
            if is_kept:
                kept.append(line)
                found = {
                    name.removeprefix("validation/"): value
                    for name, value in record.items()
                    if name.startswith("validation/")
                }
                self.last_scores = {n: math.nan if v is None else v for n, v in found.items()} or self.last_scores
        temporary = self.path.with_suffix(".tmp")
        with writing(self.path):
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(temporary, self.path)

    def write(self, step: int, values: dict[str, float], part: str) -> None:
        """Log numbers under `part/name`."""
        if part == "validation":
            self.last_scores = values
        record = {f"{part}/{name}": value for name, value in values.items()}
        self.accelerator.log(record, step=step)
        if self.accelerator.is_main_process:
            finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
            with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")

    def write_samples(self, step: int, samples: dict[str, torch.Tensor]) -> None:
        """Waveforms `(T,)` by name: wav files, a picture of their spectrograms, and the same to the trackers."""
        if not samples or not self.accelerator.is_main_process:
            return
        samples = {name: waveform.detach().float().cpu().clamp(-1, 1) for name, waveform in samples.items()}
        folder = self.sample_dir / f"step-{step:08d}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, waveform in samples.items():
                self._write_wav(folder / f"{name}.wav", waveform)
            picture = folder / "spectrograms.png" if draw_spectrograms(samples, folder / "spectrograms.png") else None
        for tracker in self.accelerator.trackers:
            self._track_samples(tracker, folder, list(samples), step, picture)

    def _track_samples(self, tracker, folder: Path, names: list[str], step: int, picture: Path | None) -> None:
        """The files of `folder` to a tracker that can play and show them."""
        if tracker.name == "tensorboard":
            for name in names:
                with wave.open(os.fspath(folder / f"{name}.wav"), "rb") as file:
                    samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
                waveform = torch.from_numpy(samples / 32768)[None]
                tracker.writer.add_audio(f"samples/{name}", waveform, step, sample_rate=self.sampling_rate)
            if picture:
                from matplotlib.image import imread

                tracker.writer.add_image("samples/spectrograms", imread(picture), step, dataformats="HWC")
        elif tracker.name in ("wandb", "trackio"):
            library = importlib.import_module(tracker.name)
            media = {f"samples/{name}": library.Audio(os.fspath(folder / f"{name}.wav")) for name in names}
            if picture:
                media["samples/spectrograms"] = library.Image(os.fspath(picture))
            tracker.log(media, step=step)

    def _write_wav(self, path: Path, waveform: torch.Tensor) -> None:
        # The standard library's writer: training machines need not have libsndfile.
        with wave.open(os.fspath(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.sampling_rate)
            file.writeframes((waveform * 32767).round().to(torch.int16).numpy().tobytes())


def draw_spectrograms(samples: dict[str, torch.Tensor], path: Path) -> bool:
    """Log-mel spectrograms of waveforms `(T,)` at 48 kHz, one below the other, as PNG; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 1.3 * len(samples)), layout="constrained")
    for axis, (name, waveform) in zip(figure.subplots(len(samples), squeeze=False)[:, 0], samples.items()):
        whole = waveform[: len(waveform) // 960 * 960]
        axis.imshow(log_mel_spectrogram(whole).T, origin="lower", aspect="auto", vmin=-7, vmax=3)
        axis.set(ylabel=name, xticks=[], yticks=[])
        axis.yaxis.label.set(rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=80)
    return True
