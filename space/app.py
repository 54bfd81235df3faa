"""The Space: `pipeline("audio-source-separation")` in a browser. Run it with `python space/app.py`.

Environment variables: MSS_MODEL, folder or Hub id of a separator (default: the one that ships with the package), and
MSS_MAX_SECONDS, the longest song that is taken (default: 600). Gradio reads its own (GRADIO_SERVER_PORT, ...).
"""

import contextlib
import math
import os
import random
import tempfile
import threading
import time
import zipfile
from concurrent.futures import CancelledError
from pathlib import Path

try:
    import spaces  # of Hugging Face's ZeroGPU; before torch, as it wants
except ImportError:
    spaces = None

import gradio as gr
import torch

import mss_lm  # noqa: F401  (makes transformers know the separator; has to run before its pipelines)

# isort: split
from limits import SONGS_PER_VISITOR, Visitors, Watch
from mixer import mixer, mixer_value
from transformers import pipeline

from processing_mss import DEFAULT_MODEL, AudioReader, AudioWriter, fitting_dtype

MAX_CANDIDATES = 4
MAX_SEED = 2**31 - 1
EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.mp3"))
HEADLINE = "# Music source separation\nA song goes in, its vocals, drums, bass and the rest come out, to be mixed anew."
UNTRAINED = "⚠️ **This checkpoint is untrained:** the stems are noise, whatever the song."
ABOUT = """
**What it is.** An encoder says which share of every sound belongs to whom; a language model, told of that, writes the
tokens of a neural audio codec, stem after stem (after arXiv 2604.09371). *Masked* divides the song's own sound by the
encoder's shares, in seconds. *Filtered* takes what the language model writes into account, too. *Generated* is the
model's own waveform: mono, and it may differ from the song. Stems of the first two add up to the song.

**What it cannot do.** The checkpoint that ships was trained for hours, on hours of music, not on thousands of them:
drums and basses come out with much of the rest removed, voices less, above all in a dense mix, and "other" keeps a good
deal of everything. Separate only songs that you may; what comes out belongs to whom the song belongs.

**What happens to a song.** It is separated on this machine, and deleted after an hour. Nothing is sent elsewhere.
"""

# On a phone, progress and what comes of it are far below the button.
SHOW_NOTE = """() => {
    const note = document.querySelector("#note");
    if (note.getBoundingClientRect().bottom > innerHeight) note.scrollIntoView({ behavior: "smooth" });
}"""

# An example is separated as soon as it is chosen, by the button, so that it is counted and queued as any song.
SEPARATE = """() => document.querySelector("#separate").click()"""

max_seconds = float(os.environ.get("MSS_MAX_SECONDS", 600))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model_name = os.environ.get("MSS_MODEL") or DEFAULT_MODEL
pipe = pipeline("audio-source-separation", model=model_name, device=device, dtype=fitting_dtype(device))
stem_names, outputs = list(pipe.model.config.stems), list(pipe.model.config.outputs)
visitors, alone, latest = Visitors(), threading.Lock(), None  # latest: the Watch of the song that was begun last


def title_of(model: str) -> str:
    """What a model is called: by the heading of its card, where it lies in a folder; else it has an id."""
    card = Path(model, "README.md")
    lines = card.read_text("utf-8").splitlines() if card.is_file() else []
    return next((line[2:] for line in lines if line.startswith("# ")), model)


def check(
    path: str | None, stems: list[str], output: str, candidates: int, seed: int, format: str, request: gr.Request
):
    """Before a song enters the queue: is there one, is anything wanted, and has its visitor a place left?"""
    has_song = path is not None and os.path.isfile(path)
    has_place = visitors.may_enter(request.client.host)
    if has_song and stems and has_place:
        visitors.enter(request.client.host, request.session_hash)
    text = f"{SONGS_PER_VISITOR} of your songs wait or are being separated: try again when one is done."
    return [
        gr.validate(has_song, "Upload or record a song first."),
        gr.validate(bool(stems), "Choose at least one stem."),
        gr.validate(has_place, text),  # beside the button: the song may be out of sight
        *[gr.validate(True, "")] * 3,
    ]


def separate(
    path: str | None,
    stems: list[str],
    output: str,
    candidates: int,
    seed: int,
    format: str,
    request: gr.Request,
    progress=gr.Progress(),  # noqa: B008
):
    """The mixer's tracks, a zip of the stems, and a line on how they were made."""
    global latest
    if not visitors.has(request.client.host, request.session_hash):
        raise gr.Error("Cancelled.", print_exception=False)
    if latest is not None:
        latest.stop()  # the queue has given it up; only its thread may not know yet
    with contextlib.ExitStack() as end:
        end.callback(visitors.leave, request.client.host, request.session_hash)
        folder = end.enter_context(tempfile.TemporaryDirectory())  # deleted once Gradio, after `yield`, has its copies
        folder, name = Path(folder), Path(path).name
        latest = watch = Watch(request.session_hash, progress, name, max_seconds, folder / "stop")
        seed = random.randint(0, MAX_SEED) if seed is None or seed < 0 else min(int(seed), MAX_SEED)
        options = {"stems": [label for label in stem_names if label in stems], "output": output}
        if output != "masked":
            options["seed"] = seed
        if output == "filtered":
            options["num_candidates"] = min(int(candidates), MAX_CANDIDATES)
        progress(0, desc="Reading")
        begin = time.monotonic()
        with alone, sentences(path, name):
            files, archived = separate_to_files(path, folder, format, options, watch)
            seconds = time.monotonic() - begin
            progress(None, desc="Drawing")
            value = mixer_value(files, folder, pipe.processor.mono_blocks, watch.on_read)
            archive = archive_of(archived, folder / f"{Path(path).stem[:100]}_stems.zip")
        length = value["num_samples"] / value["sampling_rate"]
        shown = name.replace("`", "'")  # a name is no Markdown
        note = f"`{shown}`, {length:.0f} s, {output} in {seconds:.1f} s by {title_of(model_name)}"
        yield value, str(archive), note + (f", seed {seed}" if output != "masked" else "")


def gpu_seconds(path: str, folder: Path, format: str, options: dict, watch: Watch) -> float:
    """For how long ZeroGPU is asked: a guess, never tried there; two minutes at most, as it refuses long requests."""
    with AudioReader(path, max_seconds=max_seconds, on_read=watch.on_read) as reader:
        length = reader.num_samples / reader.sampling_rate
    watch.deadline = math.inf  # it can be read in time; how long a GPU is waited for is not its fault
    return min(120, 30 + length * (0.05 if options["output"] == "masked" else 0.3 * options.get("num_candidates", 1)))


def on_gpu(function):
    """ZeroGPU's decorator, which does nothing elsewhere."""
    return function if spaces is None else spaces.GPU(duration=gpu_seconds)(function)


@on_gpu
def separate_to_files(path: str, folder: Path, format: str, options: dict, watch: Watch):
    """Stems are written block by block, as they come: as wav, which the mixer plays, and as what goes into the zip.

    Returns:
        Tracks of the mixer by name, the song first; and the files for the zip.
    """
    with sentences(path, watch.name), contextlib.ExitStack() as stack:
        reader = stack.enter_context(AudioReader(path, max_seconds=max_seconds, on_read=watch.on_read))
        watch.on_whole(reader)
        stream = pipe.stream(reader, **options, clip_mode="rescale", progress_callback=watch.on_progress)
        song = Path(path).stem[:100]
        files = {label: folder / f"{song}_{label}.wav" for label in ("mixture", *stream.labels)}
        archived = [files[label].with_suffix(f".{format}") for label in stream.labels]
        rate, size = stream.sampling_rate, {"num_samples": stream.num_samples}
        writers = {
            file: stack.enter_context(AudioWriter(file, rate, stream.num_channels, **size))
            for file in {*archived, *(files[label] for label in stream.labels)}
        }
        for block in stream:
            for label, samples in block.items():
                for suffix in {".wav", f".{format}"}:
                    writers[files[label].with_suffix(suffix)].write(samples)
        mixture = stack.enter_context(AudioWriter(files["mixture"], rate, reader.num_channels, **size))
        for samples in reader.blocks(2**18):
            mixture.write(samples)
    return files, archived


def archive_of(files: list[Path], path: Path) -> Path:
    """A zip of stems; audio is not compressed any further."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.name)
    return path


@contextlib.contextmanager
def sentences(path: str, name: str):
    """Errors as sentences for the page, with the song's name in place of where it lies here."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, CancelledError) as error:
        text = getattr(error, "strerror", None) or str(error).replace(path, name)
        raise gr.Error(text, duration=None, print_exception=False) from error


def stop(request: gr.Request):
    """Let the separation of this session end at its next step; or give up its place in the queue."""
    if latest is not None and latest.is_running and request.session_hash and latest.session == request.session_hash:
        latest.stop()
    else:
        visitors.give_up(request.client.host, request.session_hash)


async def keep_upload(path: str) -> str:
    """Takes the place of Gradio's method for the input, which downloads what an address names, all into memory."""
    if not os.path.isfile(path):
        raise gr.Error("Upload the song: addresses are not followed here.", print_exception=False)
    return await gr.Audio.async_move_resource_to_block_cache(song, path)


gr.set_static_paths(EXAMPLES)  # copied, it would be deleted after an hour, and nobody could choose it again
with gr.Blocks(title="Music source separation", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
    limit = f" Songs may be {max_seconds // 60:.0f}:{max_seconds % 60:02.0f} long."
    gr.Markdown(HEADLINE + limit + (f"\n\n{UNTRAINED}" if pipe.model.config.untrained else ""))
    with gr.Row():
        with gr.Column(min_width=280):
            song = gr.Audio(label="Song", type="filepath", sources=["upload", "microphone"])
            song.async_move_resource_to_block_cache = keep_upload
            title = "Hear one at once (made by this project, CC0)"
            examples = gr.Examples([[str(path)] for path in EXAMPLES], song, label=title, cache_examples=False)
            stems = gr.CheckboxGroup(stem_names, value=stem_names, label="Stems")
            output = gr.Radio(outputs, value=outputs[0], label="Output")
            with gr.Row():
                start = gr.Button("Separate", variant="primary", min_width=120, elem_id="separate")
                cancel = gr.Button("Cancel", min_width=120)
            with gr.Accordion("More", open=False):
                candidates = gr.Slider(
                    1,
                    MAX_CANDIDATES,
                    value=min(pipe.model.config.num_candidates, MAX_CANDIDATES),
                    step=1,
                    label="Candidates",
                    info="Of filtered: how often the language model writes each stem; their mean counts.",
                )
                seed = gr.Number(
                    -1, label="Seed", precision=0, info="Of filtered and generated; -1: a new one each time."
                )
                format = gr.Radio(["wav", "flac"], value="wav", label="Files in the zip")
        with gr.Column(scale=3, min_width=300):
            note = gr.Markdown("Choose a song, then Separate.", min_height=60, elem_id="note")
            tracks = mixer()
            archive = gr.DownloadButton("All stems (zip)", interactive=False)
    gr.Markdown(ABOUT)
    run = start.click(
        separate,
        [song, stems, output, candidates, seed, format],
        [tracks, archive, note],
        api_name="separate",
        concurrency_limit=1,
        validator=check,
        show_progress_on=note,  # so that the song before can be heard until this one is done
    )
    run.success(lambda: gr.DownloadButton(interactive=True), outputs=archive, api_name=False)
    start.click(None, js=SHOW_NOTE)
    examples.load_input_event.success(None, js=SEPARATE)
    cancel.click(stop, queue=False, api_name="stop")  # what runs
    cancel.click(None, cancels=run)  # what waits
    demo.unload(stop)
demo.queue(max_size=20, api_open=False)  # by the queue only, which counts

if __name__ == "__main__":
    if os.environ.get("SPACE_ID"):  # all come through a proxy of the Hub's, which says for whom
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
    demo.launch(
        max_file_size="500mb",
        footer_links=["api", "gradio"],
        css="#mixer .html-container { padding: 0 }",
    )
