"""The Space: `pipeline("audio-source-separation")` in a browser. Run it with `python space/app.py`.

Environment variables: MSS_MODEL, folder or Hub id of a separator (default: the one that ships with the package), and
MSS_MAX_SECONDS, the longest song that is taken (default: 600). Gradio reads its own (GRADIO_SERVER_PORT, ...).
"""

import contextlib
import math
import os
import tempfile
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import gradio as gr
import torch
from matplotlib.figure import Figure

import mss_lm  # noqa: F401  (makes transformers know the separator; has to run before its pipelines)

# isort: split
from transformers import pipeline

from processing_mss import (
    DEFAULT_MODEL,
    AudioReader,
    AudioWriter,
    damage_message,
    fitting_dtype,
    log_mel_spectrogram,
)

READ_LIMIT_S = 60  # seconds that a song may take to be decoded once
MAX_WIDTH = 8 * 48000  # samples of all channels in a second of the longest song, on average: 7.1 at 48 kHz
PICTURE_RANGE = 11.5  # of log-mel magnitudes, from black to white: 100 dB
HEADLINE = "# Music source separation\nA language model writes the stems of a song as tokens of a neural audio codec."
UNTRAINED = "⚠️ **This checkpoint is untrained:** the stems are noise, whatever the song."
ADVICE = (
    "Masked, for remixes and karaoke: the song's own sound, in all its channels, divided among stems that add up to "
    "it, in seconds. Filtered: the same, with what the language model writes taken into account. Generated, for "
    "listening to one stem alone: the model's own waveform, mono, which may differ from the song."
)

max_seconds = float(os.environ.get("MSS_MAX_SECONDS", 600))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model_name = os.environ.get("MSS_MODEL") or DEFAULT_MODEL
pipe = pipeline("audio-source-separation", model=model_name, device=device, dtype=fitting_dtype(device))
stem_names, outputs = list(pipe.model.config.stems), list(pipe.model.config.outputs)
alone, latest = threading.Lock(), None  # the Watch of the song that was begun last


def separate(path: str | None, stems: list[str], output: str, request: gr.Request, progress=gr.Progress()):  # noqa: B008
    """One file for each stem of the model, None for those that were not asked for; and the spectrograms."""
    if path is None or not os.path.isfile(path):
        raise gr.Error("Upload or record a song first.")
    if not stems:
        raise gr.Error("Choose at least one stem.")
    global latest
    if latest is not None:
        latest.is_stopped = True  # the queue has given it up; only its thread may not know yet
    latest = watch = Watch(request.session_hash, progress, Path(path).name)
    progress(0, desc="Reading")
    with tempfile.TemporaryDirectory() as folder:  # deleted once Gradio, after `yield`, has copied the files
        files = {label: f"{folder}/{Path(path).stem[:100]}_{label}.wav" for label in stem_names if label in stems}
        try:
            with alone:
                separate_to_files(path, files, output, watch)
                progress(None, desc="Drawing")
                picture = draw_spectrograms({"mixture": path, **files}, watch)
        except (ValueError, RuntimeError, OSError, CancelledError) as error:
            text = getattr(error, "strerror", None) or str(error).replace(path, watch.name)
            raise gr.Error(text, duration=None, print_exception=False) from error
        yield *map(files.get, stem_names), picture


class Watch:
    """Looks at one separation: shows how far it is, and ends it when that is wanted or reading takes too long.

    One song is separated at a time: what never ends would keep everybody waiting.
    """

    def __init__(self, session: str | None, progress: gr.Progress, name: str):
        self.session, self.progress, self.name = session, progress, name
        self.is_stopped = False
        self.deadline = time.monotonic() + READ_LIMIT_S

    def on_read(self, seconds: float):
        self._check_stopped()
        if time.monotonic() > self.deadline:
            raise ValueError(f"Reading {self.name} takes more than {READ_LIMIT_S} s: is it whole?")

    def on_whole(self, reader: AudioReader):
        """The song was read once, and can be: now it is separated, in time that its length tells."""
        self.deadline = math.inf
        if reader.num_samples * reader.num_channels > max_seconds * MAX_WIDTH:
            raise ValueError(
                f"{self.name} has {reader.num_channels} channels at {reader.sampling_rate} Hz, too many for a song of "
                "this length here: cut it, or take fewer channels or a lower rate."
            )
        if reader.losses:
            gr.Warning(damage_message(self.name, reader.losses), duration=None)

    def on_progress(self, done: int, total: int):
        self._check_stopped()
        self.progress((done, total), desc="Separating")

    def _check_stopped(self):
        if self.is_stopped:
            raise CancelledError("Cancelled.")


def separate_to_files(path: str, files: dict[str, str], output: str, watch: Watch):
    """Stems are written block by block, as they come."""
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(AudioReader(path, max_seconds=max_seconds, on_read=watch.on_read))
        watch.on_whole(reader)
        stream = pipe.stream(
            reader, stems=list(files), output=output, clip_mode="rescale", progress_callback=watch.on_progress
        )
        layout = {"sampling_rate": stream.sampling_rate, "num_channels": stream.num_channels}
        layout["num_samples"] = stream.num_samples
        writers = {label: stack.enter_context(AudioWriter(file, **layout)) for label, file in files.items()}
        for block in stream:
            for label, samples in block.items():
                writers[label].write(samples)


def draw_spectrograms(files: dict[str, str], watch: Watch) -> Figure:
    """Log-mel spectrograms as the model sees them, one below the other, all on the scale of the first."""
    figure = Figure(figsize=(10, 1.5 * len(files)), layout="constrained")
    white = None
    for axes, (label, file) in zip(figure.subplots(len(files), sharex=True), files.items()):
        with AudioReader(file, on_read=watch.on_read) as reader:
            blocks = map(torch.from_numpy, reader.blocks(2**18))
            mono = torch.cat(list(pipe.processor.mono_blocks(blocks, reader.sampling_rate)))
        mono = torch.nn.functional.pad(mono, (0, max(-len(mono) % 960, 2880 - len(mono))))
        picture = log_mel_spectrogram(mono).T.numpy()
        white = picture.max() if white is None else white
        place = {"aspect": "auto", "origin": "lower", "extent": (0, len(mono) / 48000, 0, 1)}
        axes.imshow(picture, "magma", vmin=white - PICTURE_RANGE, vmax=white, **place)
        axes.set(ylabel=label, yticks=[])
    axes.set_xlabel("seconds")
    return figure


def stop(request: gr.Request):
    """Let the separation of this session end at its next step."""
    if latest is not None and request.session_hash is not None and latest.session == request.session_hash:
        latest.is_stopped = True


async def keep_upload(path: str) -> str:
    """Takes the place of Gradio's method for the input, which downloads what an address names, all into memory."""
    if not os.path.isfile(path):
        raise gr.Error("Upload the song: addresses are not followed here.", print_exception=False)
    return await gr.Audio.async_move_resource_to_block_cache(song, path)


with gr.Blocks(title="Music source separation", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
    gr.Markdown(HEADLINE + (f"\n\n{UNTRAINED}" if pipe.model.config.untrained else ""))
    with gr.Row():
        with gr.Column():
            song = gr.Audio(label="Song", type="filepath", sources=["upload", "microphone"])
            song.async_move_resource_to_block_cache = keep_upload
            stems = gr.CheckboxGroup(stem_names, value=stem_names, label="Stems", info="Made in this order.")
            output = gr.Radio(outputs, value=outputs[0], label="Output", info=ADVICE)
            with gr.Row():
                start = gr.Button("Separate", variant="primary")
                cancel = gr.Button("Cancel")
        with gr.Column():
            players = [gr.Audio(label=name, format="wav", interactive=False) for name in stem_names]
    plot = gr.Plot(label="Spectrograms", show_label=False)
    run = start.click(separate, [song, stems, output], [*players, plot], api_name="separate", concurrency_limit=1)
    cancel.click(stop, queue=False, api_name="stop")  # what runs
    cancel.click(None, cancels=run)  # what waits
    demo.unload(stop)
demo.queue(max_size=20, api_open=False)  # by the queue only, which counts

if __name__ == "__main__":
    demo.launch(max_file_size="500mb", footer_links=["api", "gradio"])
