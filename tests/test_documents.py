"""The documents keep their word: each block of code is run here or by CI, or says on its first line what it needs.

Command lines, run or not, are read by their own parsers, so that options that are gone or misspelt are found.
"""

import argparse
import ast
import importlib
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

import processing_mss
from data_mss.musdb18 import prepare_musdb18
from data_mss.packing import prepare_packed
from data_mss.stem_folders import prepare_stem_folders
from modeling_mss import HCodecConfig
from modeling_mss.convert_hcodec import save_feature_extractor
from tests.documents import DOCUMENTS, ROOT, Block, blocks, commands, help_commands, heredocs, inline_commands, program
from training_mss.configuration import load_config

PROGRAMS = [path for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")] if help_commands(path)]
BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
NEEDS = re.compile(r"(data|a GPU|some minutes of|an account on the Hub|a repository on the Hub)\b")
IN_THE_REPOSITORY = re.compile(r"(configs|examples|benchmarks|tests|space|pretrained_mss)(/|$)")
RATE = 44100

# What the text before a page's Python speaks of.
GIVEN = {
    "docs/examples.md": "song",
    "docs/method.md": "song waveform model processor separate",
    "pretrained_mss/codec/README.md": "waveform",
}


class Parsed(BaseException):  # which no program takes for an error of its own
    """Carries the options of a command line whose parser had no complaint, and what it passes on to another one."""


def parse_only(patch: pytest.MonkeyPatch, whole: bool):
    """Let all programs end, by `Parsed`, where they have read their options."""
    parse_args, parse_known_args = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args

    def all_options(parser, args=None, namespace=None):
        if not whole:
            require_nothing(parser)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)  # it calls it itself
        raise Parsed(parse_args(parser, args, namespace), [])

    def known_options(parser, args=None, namespace=None):
        if not whole:
            require_nothing(parser)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
        raise Parsed(*parse_known_args(parser, args, namespace))

    patch.setattr(argparse.ArgumentParser, "parse_args", all_options)
    patch.setattr(argparse.ArgumentParser, "parse_known_args", known_options)


def options_of(module: str, arguments: list[str], monkeypatch, whole: bool = True) -> argparse.Namespace:
    """The options that a program of this repository reads from its command line; none if it shows its help.

    Args:
        whole: everything is given that has to be, as it is not where prose speaks of some options.

    Raises:
        AssertionError: the parser refuses them.
    """
    with monkeypatch.context() as patch, pytest.raises((Parsed, SystemExit)) as outcome:
        parse_only(patch, whole)
        patch.setattr(sys, "argv", [module, *arguments])
        importlib.import_module(module).main()
    if outcome.type is SystemExit:
        assert outcome.value.code == 0, f"{module} does not take {' '.join(arguments)}"
        return argparse.Namespace()
    options, passed_on = outcome.value.args
    if passed_on:
        assert module == "training_mss.recipe"
        given = ["--stage", "masks", "--output_dir", str(options.output_dir), *passed_on]
        return options_of("train_accelerate", given, monkeypatch, whole)
    return options


def require_nothing(parser: argparse.ArgumentParser):
    for action in parser._actions:
        action.required = False
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                require_nothing(subparser)


def check(command: list[str], monkeypatch, whole: bool = True):
    """Everything about a command line that can be known without running it."""
    if command[0] == "make":
        for target in command[1:]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no make {target}"
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(command)) if "pip" in command else []:
        for name in extra.split(","):
            assert f'    "{name}": [' in (ROOT / "setup.py").read_text(), f"setup.py has no extra {name}"
    if (found := program(command)) is None:
        return
    module, arguments = found
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), f"there is no {module}"
    for path in [part for value in command for part in value.split("=")[-1].split(",")]:
        if IN_THE_REPOSITORY.match(path):
            assert (ROOT / path).exists(), f"{path} is not in the repository"
    if module != "space.app":  # which has no options
        whole = whole and "..." not in arguments
        options = options_of(module, [value for value in arguments if value != "..."], monkeypatch, whole)
        if getattr(options, "set", None) and options.config:
            load_config(ROOT / options.config, options.set)  # a field that --set names may be gone


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_commands_of_a_block_are_valid(block, monkeypatch):
    for command in commands(block.text) if block.language == "bash" else []:
        check(command, monkeypatch)
    for code in [block.text] if block.language == "python" else heredocs(block.text):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_prose_are_valid(path, monkeypatch):
    for command in inline_commands(path):
        check(command, monkeypatch, whole=False)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_commands_that_programs_say_of_themselves_are_valid(path, monkeypatch):
    for command in help_commands(path):
        check(command, monkeypatch)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark], ids=str)
def test_marks_say_what_is_needed_or_who_runs_it(block):
    kind, what = block.mark
    if kind == "needs":
        assert NEEDS.match(what), f"{block}: one of {NEEDS.pattern}"
    elif what == "CI":
        run = commands((ROOT / ".ci" / "run").read_text())
        assert all(command in run for command in commands(block.text)), f"{block}: .ci/run has not all of these"
    else:
        test, named = (ROOT / what).read_text(), re.findall(r"(\w+)\.py\b", block.text)
        if block.language == "python":
            named = [name for line in re.findall(r"import (.*)", block.text) for name in line.split(", ")]
        assert named and all(re.search(rf"\b{name}\b", test) for name in named), f"{block}: {what} does not run {named}"


def noise(path: Path, seconds: float, rate: int = RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(len(path.name)).uniform(-0.3, 0.3, (int(seconds * rate), 2))
    soundfile.write(path, samples, rate)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, model_dir, codec_dir) -> Path:
    """A folder that has what the documents speak of: short songs, small manifests, tiny models."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("song.mp3", "a.mp3", "b.mp3", "concert.flac", "albums/one.wav", "albums/two.wav", "songs/x.wav"):
        noise(folder / name, 2.0 if name == "songs/x.wav" else 1.0)
    for stem in ("vocals", "drums", "bass", "other"):
        noise(folder / "my_songs" / "Song" / f"{stem}.wav", 4.5)
        for split in ("train", "test"):
            noise(folder / "MUSDB18-HQ" / split / "A - Song" / f"{stem}.wav", 4.5)
        for system in ("separated", "more/stems"):
            noise(folder / system / "A - Song" / f"{stem}.wav", 4.5)
    for split in ("train", "test"):
        noise(folder / "MUSDB18-HQ" / split / "A - Song" / "mixture.wav", 4.5)
    prepare_musdb18(folder / "MUSDB18-HQ", folder / "data" / "musdb18")
    prepare_stem_folders(folder / "my_songs", folder / "data" / "rendered", source="render")
    prepare_packed([folder / "data" / "rendered"], folder / "data" / "packed")
    for name in ("pretrained_mss", "runs/separator/final", "runs/tiny/separator/final"):
        shutil.copytree(model_dir, folder / name)
    for name in ("pretrained_mss/codec", "hcodec"):
        shutil.copytree(codec_dir, folder / name)
        save_feature_extractor(HCodecConfig.from_pretrained(codec_dir), folder / name)
    (folder / "runs" / "tiny" / "rendered").symlink_to(folder / "data" / "musdb18")
    return folder


@pytest.fixture(scope="module")
def given(model_dir) -> dict:
    """Values of the names that pages use before they have made them."""
    separate = pipeline("audio-source-separation", model=model_dir)
    song = np.random.default_rng(0).uniform(-0.3, 0.3, (2, RATE)).astype(np.float32)
    values = {"song": song, "waveform": torch.zeros(1, 48000), "separate": separate}
    return {**values, "model": separate.model, "processor": separate.processor}


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.mark], ids=str)
def test_blocks_without_a_mark_run_as_written(block: Block, prepared, given, tmp_path, monkeypatch):
    folder = shutil.copytree(prepared, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(folder)
    if block.path.name != "README.md":  # which alone is run with the checkpoint that ships
        monkeypatch.setattr(processing_mss, "DEFAULT_MODEL", str(folder / "pretrained_mss"))
    if block.language == "python":
        names = GIVEN.get(str(block.path.relative_to(ROOT)), "").split()
        exec(compile(block.text, str(block), "exec"), {name: given[name] for name in names})
        return
    for command in commands(block.text):
        found = program(command)
        assert found, f"{block}: the tests run programs of this repository only; {command} needs a mark"
        monkeypatch.setattr(sys, "argv", [found[0], *found[1]])
        try:
            code = importlib.import_module(found[0]).main()
        except SystemExit as end:
            code = end.code
        assert not code, f"{block}: {' '.join(command)} ends with {code}"


def slug(heading: str) -> str:
    """The anchor of a heading, as Git hosts and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


# mkdocs checks the pages among each other.
@pytest.mark.parametrize(
    "path",
    [path for path in [*DOCUMENTS, *ROOT.glob("data_mss/*/README.md")] if path.parent.name != "docs"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_outside_of_the_site_lead_somewhere(path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", path.read_text()):
        file = path.parent / target if target else path
        assert file.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{path.name} links to {target}#{anchor}"


def test_the_tree_in_readme_names_files_that_exist():
    tree = re.search(r"^## Where things are$.*?^```$(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)[1]
    there = {path.name for path in ROOT.rglob("*.py") if not path.is_relative_to(ROOT / ".venv")}
    assert set(re.findall(r"\b[a-z]\w*\.py", tree)) <= there
    for folder in re.findall(r"^(\w+)/", tree, re.M):
        assert (ROOT / folder).is_dir(), folder


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    mkdocs = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is not installed (pip install -e '.[dev]')")
    config = importlib.import_module("mkdocs.config").load_config(
        str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True
    )
    mkdocs.build(config)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    for path in [*pages, *tmp_path.rglob("*.css")]:
        loaded = re.findall(
            r"""<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=["']?([^"'\s>]+)""", path.read_text()
        )
        loaded += re.findall(r"""(?:url\(|@import )["']?([^"')]+)""", path.read_text()) if path.suffix == ".css" else []
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], path
