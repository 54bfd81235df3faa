"""The mixer: waveforms and spectrograms of a song and its stems on one timeline, played together.

Here is what the page is told of each track; what it does with it is in mixer.html, mixer.css and mixer.js.
"""

import math
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import numpy as np
import soundfile
import torch
from matplotlib.image import imsave

from processing_mss import AudioReader, log_mel_spectrogram

NUM_BARS = 800  # of a waveform
NUM_COLUMNS = 1200  # of a spectrogram, at most
PICTURE_RANGE = 11.5  # of log-mel magnitudes, from black to white: 100 dB
SAMPLE_BYTES = 2  # of the 16-bit wav files that are played
HERE = Path(__file__).parent


def mixer() -> gr.HTML:
    """Output component; its value is what `mixer_value` returns, or None: a line that says what will be here.

    A function, since Gradio writes a file beside each class of components.
    """
    html, css, script = ((HERE / f"mixer.{suffix}").read_text("utf-8") for suffix in ("html", "css", "js"))
    return gr.HTML(html_template=html, css_template=css, js_on_load=script, apply_default_css=False, elem_id="mixer")


def mixer_value(files: dict[str, Path], folder: Path, mono_blocks: Callable, on_read: Callable) -> dict:
    """What the page needs to play and draw tracks.

    Args:
        files: 16-bit wav of the song ("mixture", first) and of each stem, all of the same length and rate.
        folder: for the pictures.
        mono_blocks: of the processor: blocks of a track, rate -> mono blocks at 48 kHz.
        on_read: called while files are read; an exception that it raises goes on.

    Returns:
        `sampling_rate`, `num_samples`, and `tracks`: for each `name`, `file` and `spectrogram` (as Gradio sends files),
        `num_channels`, `offset` (bytes before the first sample), and `peaks` and `levels`, the largest and the root of
        the mean square of each of up to 800 parts, full scale 1.
    """
    tracks, white = [], None
    for name, file in files.items():
        picture, info = _log_mel(file, mono_blocks, on_read), soundfile.info(file)
        white = picture.max() if white is None else white  # all on the scale of the song
        png = folder / f"{name}.png"
        imsave(png, picture.T, cmap="magma", vmin=white - PICTURE_RANGE, vmax=white, origin="lower")
        track = {"name": name, "file": _sent(file), "spectrogram": _sent(png), "num_channels": info.channels}
        track["offset"] = file.stat().st_size - info.frames * info.channels * SAMPLE_BYTES
        tracks.append({**track, **_waveform(file, info.frames)})
    return {"sampling_rate": info.samplerate, "num_samples": info.frames, "tracks": tracks}


def _waveform(file: Path, num_samples: int) -> dict[str, list[float]]:
    blocks = soundfile.blocks(file, blocksize=math.ceil(num_samples / NUM_BARS), dtype="float32")
    bars = np.array([(np.abs(block).max(), np.sqrt(np.square(block).mean())) for block in blocks])
    peaks, levels = bars.round(3).T.tolist()
    return {"peaks": peaks, "levels": levels}


def _log_mel(file: Path, mono_blocks: Callable, on_read: Callable) -> np.ndarray:
    """`(columns, mel bins)`: the log-mel spectrogram as the model sees it, averaged where it has too many frames."""
    with AudioReader(file, on_read=on_read) as reader:
        blocks = map(torch.from_numpy, reader.blocks(2**18))
        mono = torch.cat(list(mono_blocks(blocks, reader.sampling_rate)))
    mono = torch.nn.functional.pad(mono, (0, max(-len(mono) % 960, 2880 - len(mono))))
    picture = log_mel_spectrogram(mono)
    return torch.nn.functional.adaptive_avg_pool1d(picture.T, min(NUM_COLUMNS, len(picture))).T.numpy()


def _sent(file: Path) -> dict:
    return {"path": str(file), "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}
