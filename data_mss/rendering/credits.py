"""Whom a song is owed to: a credit line for everything that is heard in it."""

import os
import shutil
from pathlib import Path

import yaml

from .recipe import SYNTHESIZER, Played, RenderConfig, Sung

COMPOSED = "composed"  # source of an arrangement that is nobody's


def source_name(path: str | os.PathLike) -> str:
    """The name by which recipes and credits call a file or folder: its base name."""
    return Path(os.path.abspath(path)).name


def sources_heard(config: RenderConfig, arrangement: str, played: list[Played], sung: Sung) -> list[str]:
    """What is heard in a song, each once: base names of the files and folders given, "synthesizer", "espeak-ng".

    Args:
        arrangement: "composed", or the name of a MIDI file.
    """
    sources = [part.player for part in played]
    if any(part.groove for part in played):
        sources.append(source_name(config.grooves_dir))
    if arrangement != COMPOSED:
        sources.append(source_name(config.midi_dir))
    if sung.kind == "recorded":
        sources.append(source_name(config.vocals_dir))
    elif sung.kind == "sung":
        sources.append(source_name(config.speech_dir) if config.speech_dir is not None else "espeak-ng")
    if sung.choir is not None:
        sources.append(sung.choir.folder)
    return list(dict.fromkeys(sources))


def sources_given(config: RenderConfig) -> list[str]:
    """All that `sources_heard` can name."""
    folders = (config.grooves_dir, config.midi_dir, config.vocals_dir, config.speech_dir, config.choir_dir)
    paths = [*config.soundfonts, *config.drums_dirs, *config.bass_dirs, *(path for path in folders if path is not None)]
    sources = [source_name(path) for path in paths]
    if config.synthesizer_share > 0:
        sources.append(SYNTHESIZER)
    if config.synthetic_vocals and config.speech_dir is None and shutil.which("espeak-ng") is not None:
        sources.append("espeak-ng")
    return list(dict.fromkeys(sources))


def read_credits(path: str | os.PathLike, config: RenderConfig) -> dict[str, str]:
    """Credit lines by source, such as `MuldjordKit: MuldjordKit by Lars Muldjord, CC BY 4.0`.

    Raises:
        ValueError: no YAML mapping of names to lines, or one that lacks a source of the configuration.
    """
    try:
        credits = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"Cannot read the credits {path}: {error}") from error
    if not isinstance(credits, dict) or not all(isinstance(line, str) and line for line in credits.values()):
        raise ValueError(f"{path} must map names of files and folders to lines of text, got {type(credits).__name__}.")
    missing = [source for source in sources_given(config) if source not in credits]
    if missing:
        raise ValueError(
            f"{path} has no credit for {missing}, it has {sorted(credits)}. Add a line for each, by the base name of "
            "the file or folder, with author and licence; or leave out what may not be used."
        )
    return credits
