"""A seeded corpus of rendered songs with true stems: `mss-lm prepare render`."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from processing_mss import write_audio

from ..manifest import STEMS, ManifestWriter, Song
from ..preparing import PrepareReport, made_from, prepare_songs
from .choir import load_singers
from .credits import read_credits
from .grooves import load_grooves
from .midi import find_midi
from .recipe import SYNTHESIZER, RenderConfig, song_seconds
from .samples import load_bass, load_kit
from .song import render_song
from .voices import find_audio

DEFAULT_LICENCE = "rendered; see soundfonts"


def prepare_render(
    output_dir: str | os.PathLike,
    hours: float,
    config: RenderConfig,
    num_workers: int = 1,
    licence: str | None = None,
    credits: str | os.PathLike | None = None,
) -> PrepareReport:
    """Render songs until they last `hours` together, and write `output_dir/manifest.jsonl`.

    Song i depends only on the seed, on i and on the files given; with more hours later, songs are added. Finished songs
    stay as they are, a killed run goes on where it stopped. 90 % of the songs are for training, 5 % for validation and
    5 % for testing, unless `config.split` says where all of them belong.

    Args:
        output_dir: holds a folder a song (`mixture.flac`, a file for each stem that sounds, `recipe.json`).
        config: what songs are made of.
        num_workers: processes; each loads the soundfonts it uses.
        licence: of all songs; it should name the soundfonts' and the vocals' licences.
        credits: a YAML file with a line for everything given, by base name (see `read_credits`), instead of `licence`:
            each song's licence is then the lines of what is heard in it.

    Raises:
        ValueError: a folder that holds nothing of its kind, no positive duration, a licence beside credits, something
            given without a credit, or songs that were rendered from others or otherwise.
    """
    if hours <= 0 or num_workers < 1:
        raise ValueError(f"Need positive `hours` and `num_workers`, got {hours} and {num_workers}.")
    if licence is not None and credits is not None:
        raise ValueError(f"Credits say each song's licence: leave out `licence`, got {licence!r}, or {credits}.")
    lines = read_credits(credits, config) if credits is not None else None
    check_folders(config)
    output_dir = Path(output_dir)
    writer = ManifestWriter(output_dir / "manifest.jsonl")
    indices = range(count_songs(config, hours))
    wanted = dict.fromkeys((song_id(config, index) for index in indices), rendered_from(config, lines or licence))
    todo = [index for index in indices if song_id(config, index) not in writer]
    make = partial(make_song, config, output_dir, lines or licence or DEFAULT_LICENCE)
    if num_workers == 1:
        jobs = ((song_id(config, index), partial(make, index)) for index in indices)
        return prepare_songs(writer, jobs, "render", wanted)
    # Spawned, not forked: threads of torch and of the tests' process do not survive a fork.
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=start_worker)
    try:
        return prepare_songs(writer, submit(pool, make, config, indices, todo), "render", wanted)
    finally:
        pool.shutdown(cancel_futures=True)


def rendered_from(config: RenderConfig, licence: str | dict[str, str] | None) -> dict:
    """`made_from` of all songs: what is not the default."""
    default = RenderConfig(config.soundfonts)
    settings = {name: value for name, value in vars(config).items() if value != getattr(default, name)}
    return made_from(config.soundfonts, licence=licence, **settings)


def check_folders(config: RenderConfig):
    """Raise ValueError now if a folder has nothing of what it should hold, not in every song."""
    for load, folders in (
        (load_kit, config.drums_dirs),
        (load_bass, config.bass_dirs),
        (load_grooves, [config.grooves_dir]),
        (partial(find_audio, vocals_only=True), [config.vocals_dir]),
        (partial(find_audio, vocals_only=False), [config.speech_dir]),
        (load_singers, [config.choir_dir]),
        (find_midi, [config.midi_dir]),
    ):
        for folder in folders:
            if folder not in (None, SYNTHESIZER):
                load(folder)


def submit(
    pool: Executor, make: Callable[[int], Song], config: RenderConfig, indices: range, todo: list[int]
) -> Iterator[tuple[str, Callable[[], Song]]]:
    """Jobs for `prepare_songs` that are worked on ahead of it; songs that are done already are named only."""
    futures = {index: pool.submit(make, index) for index in todo}
    for index in indices:
        yield song_id(config, index), futures[index].result if index in futures else partial(make, index)


def start_worker():
    """One thread a process: parallel is the corpus, not the song."""
    torch.set_num_threads(1)


def song_id(config: RenderConfig, index: int) -> str:
    """Name of a song and of its folder."""
    return f"render_{config.seed}_{index:06d}"


def count_songs(config: RenderConfig, hours: float) -> int:
    """How many songs last `hours` together."""
    seconds, count = 0.0, 0
    while seconds < hours * 3600 - 1e-6:
        seconds += song_seconds(config, count)
        count += 1
    return count


def make_song(config: RenderConfig, output_dir: Path, licence: str | dict[str, str], index: int) -> Song:
    """Render a song into its folder, unless that is there already, and return its manifest entry.

    Its licence is the one given, or the credits (by source) of what is heard in it.

    The folder appears complete or not at all: it is written under another name and renamed.
    """
    name = song_id(config, index)
    folder = output_dir / name
    settings = rendered_from(config, None)
    if not folder.exists():
        partial_folder = output_dir / f".{name}.partial"
        shutil.rmtree(partial_folder, ignore_errors=True)  # of a run that was killed
        partial_folder.mkdir(parents=True)
        stems, recipe = render_song(config, index)
        write_audio(partial_folder / "mixture.flac", sum(stems.values()), recipe.sampling_rate)
        for stem, waveform in stems.items():
            if np.any(waveform):
                write_audio(partial_folder / f"{stem}.flac", waveform, recipe.sampling_rate)
        text = json.dumps({**recipe.to_dict(), "made_from": settings}, indent=1, ensure_ascii=False)
        (partial_folder / "recipe.json").write_text(text, encoding="utf-8")
        os.replace(partial_folder, folder)
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    if recipe.get("made_from", settings) != settings:  # folders of earlier versions do not say
        raise ValueError(f"{folder} was rendered from other sounds or settings: remove it, or choose another folder.")
    if not isinstance(licence, str):
        missing = [source for source in recipe.get("sources", ["what it was rendered from"]) if source not in licence]
        if missing:
            raise ValueError(f"There is no credit for {missing} in {folder}, rendered before: remove that folder.")
        licence = "; ".join(licence[source] for source in recipe["sources"])
    return Song(
        id=name,
        split=config.split_of(index),
        stems={stem: [str(path)] if (path := folder / f"{stem}.flac").exists() else [] for stem in STEMS},
        duration=recipe["duration"],
        sampling_rate=recipe["sampling_rate"],
        source="render",
        licence=licence,
        mixture=str(folder / "mixture.flac"),
    )
