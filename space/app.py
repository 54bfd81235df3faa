"""The Space: `pipeline("audio-source-separation")` in a browser. Run it with `python space/app.py`.

Environment variables: MSS_MODEL, folder or Hub id of a separator (default: the one that ships with the package), and
MSS_MAX_SECONDS, the longest song that is taken (default: 600). Gradio reads its own (GRADIO_SERVER_PORT, ...).
"""

import contextlib
import os
import tempfile
from concurrent.futures import CancelledError
from pathlib import Path

import gradio as gr
import torch
from matplotlib.figure import Figure
from transformers import pipeline

import mss_lm  # noqa: F401  (makes transformers know the separator)
from processing_mss import DEFAULT_MODEL, AudioWriter, log_mel_spectrogram, read_audio, resample

PICTURE_RANGE = 11.5  # of log-mel magnitudes, from black to white: 100 dB
HEADLINE = "# Music source separation\nA language model writes the stems of a song as tokens of a neural audio codec."
UNTRAINED = "⚠️ **This checkpoint is untrained:** the stems are noise, whatever the song."
ADVICE = (
    "Masked, for remixes and karaoke: the song's own sound, in all its channels, divided among stems that add up to "
    "it, in seconds. Filtered: the same, with what the language model writes taken into account. Generated, for "
    "listening to one stem alone: the model's own waveform, mono, which may differ from the song."
)

max_seconds = float(os.environ.get("MSS_MAX_SECONDS", 600))
pipe = pipeline("audio-source-separation", model=os.environ.get("MSS_MODEL") or DEFAULT_MODEL, dtype="auto")
stem_names, outputs = list(pipe.model.config.stems), list(pipe.model.config.outputs)
stopped_sessions = set()


def separate(path: str | None, stems: list[str], output: str, request: gr.Request, progress=gr.Progress()):  # noqa: B008
    """One file for each stem of the model, None for those that were not asked for; and the spectrograms."""
    if path is None or not stems:
        raise gr.Error("Upload or record a song first." if path is None else "Choose at least one stem.")
    stopped_sessions.discard(request.session_hash)

    def on_progress(done: int, total: int):
        if request.session_hash in stopped_sessions:
            raise CancelledError("Cancelled.")
        progress((done, total), desc="Separating")

    progress(0, desc="Reading")
    with tempfile.TemporaryDirectory() as folder:  # deleted once Gradio, after `yield`, has copied the files
        files = {label: f"{folder}/{Path(path).stem}_{label}.wav" for label in stem_names if label in stems}
        try:
            write_stems(path, files, output, on_progress)
        except (ValueError, RuntimeError, OSError, CancelledError) as error:
            raise gr.Error(str(error).replace(path, Path(path).name), duration=None, print_exception=False) from error
        progress(None, desc="Drawing")
        yield *map(files.get, stem_names), draw_spectrograms({"mixture": path, **files})


def write_stems(path: str, files: dict[str, str], output: str, on_progress):
    """Block by block, in memory that does not grow with the song."""
    stream = pipe.stream(path, stems=list(files), output=output, clip_mode="rescale", progress_callback=on_progress)
    seconds = stream.num_samples / stream.sampling_rate
    if seconds > max_seconds:
        raise ValueError(f"The song has {seconds:.0f} s, this Space takes {max_seconds:g} s at most. Cut it first.")
    with contextlib.ExitStack() as stack:
        layout = stream.sampling_rate, stream.num_channels
        writers = {label: stack.enter_context(AudioWriter(file, *layout)) for label, file in files.items()}
        for block in stream:
            for label, samples in block.items():
                writers[label].write(samples)


def draw_spectrograms(files: dict[str, str]) -> Figure:
    """Log-mel spectrograms as the model sees them, one below the other, all on the scale of the first."""
    figure = Figure(figsize=(10, 1.5 * len(files)), layout="constrained")
    white = None
    for axes, (label, file) in zip(figure.subplots(len(files), sharex=True), files.items()):
        waveform, rate = read_audio(file)
        mono = resample(torch.from_numpy(waveform).mean(dim=0), rate, 48000)
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
    stopped_sessions.add(request.session_hash)


with gr.Blocks(title="Music source separation", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
    gr.Markdown(HEADLINE + (f"\n\n{UNTRAINED}" if pipe.model.config.untrained else ""))
    with gr.Row():
        with gr.Column():
            song = gr.Audio(label="Song", type="filepath", sources=["upload", "microphone"])
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
demo.queue(max_size=20)

if __name__ == "__main__":
    demo.launch(max_file_size="500mb", footer_links=["api", "gradio"])
