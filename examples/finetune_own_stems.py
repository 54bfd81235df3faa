"""Go on training a separator with your own stems for some minutes of a CPU, and see whether that helped.

python examples/finetune_own_stems.py my_stems --minutes 5
mss-lm separate song.mp3 --model finetuned/training/final

my_stems holds a folder a song: song/vocals.*, drums.*, bass.*, other.*, in any audio format. A stem without a file is
silent; guitar, piano, kick and the like count where they belong (docs/data.md). Two songs are needed at least: every
fifth, five at most, is held out, never trained on, and scored before and after, since a score on songs that were
trained on would only say that they were learned by heart.

Each step is a command that you can run yourself, and is printed: `mss-lm prepare stems`, `mss-lm prepare pack`,
`train_accelerate.py --stage masks --init_from MODEL`, `mss-lm evaluate`. The masks learn, the language model does not,
and the result separates by masks alone. This needs pip install -e ".[train]".

exit codes: 0 done, whether or not scores rose; 1 failed, 2 wrong usage, 130 interrupted
"""

import argparse
import json
import shlex
import sys
from importlib import import_module
from pathlib import Path

import torch

from commands_mss.errors import EXPECTED_ERRORS, fail
from commands_mss.main import main as mss_lm
from data_mss.manifest import STEMS, known_stems, read_manifest
from data_mss.sharding import default_device
from processing_mss import DEFAULT_MODEL, fitting_dtype

RECIPE = Path(__file__).with_name("finetune.yaml")
SYSTEMS = {"equal_shares": "a quarter of the mixture", "before masked": "before", "after masked": "after"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("stems_folder", type=Path, help="folder of song folders, searched through")
    add("--minutes", type=float, default=5, help="of training (default: %(default)s)")
    add("--held_out", nargs="+", default=[], metavar="SONG", help="songs for scores alone (default: every fifth)")
    add("--model", default=DEFAULT_MODEL, help="separator with masks to start from (default: the one that ships)")
    add("--codec", help="whole codec that the model was trained over (default: MODEL/codec)")
    add("--config", default=RECIPE, metavar="FILE", help="recipe (default: finetune.yaml beside this script)")
    add("--output_dir", type=Path, default=Path("finetuned"), help="a new folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        return finetune(options)
    except EXPECTED_ERRORS as error:
        return fail("finetune_own_stems.py", error)


def finetune(options: argparse.Namespace) -> int:
    import_module("train_accelerate")  # what it needs (the extra "train") is missed before anything is written
    folder, model = options.output_dir, options.model
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another --output_dir, or delete it if you need it no more.")
    songs, packed, training, scores = (folder / name for name in ("songs", "packed", "training", "scores"))
    run("mss-lm prepare stems", options.stems_folder, "--output_dir", songs)
    hold_out(songs / "manifest.jsonl", options.held_out)
    run("mss-lm prepare pack", songs, "--output_dir", packed)

    print(f"Training ends after {options.minutes:g} minutes, wherever its bar is then.", flush=True)
    given = ["--manifests", packed, "--init_from", model, "--codec", options.codec or f"{model}/codec"]
    given += ["--max_train_minutes", options.minutes, "--num_workers", 0, "--output_dir", training]
    given += ["--validation_steps", 10**9]  # at the end alone: the held-out songs must not choose among weights
    precision = "bf16" if fitting_dtype(default_device()) is torch.bfloat16 else "no"
    given += ["--set", f"masks.mixed_precision={precision}"]
    run("python train_accelerate.py --stage masks --config", options.config, *given)

    tuned = training / "final"
    given = ["--manifests", songs, "--split", "validation", "--bounds", "equal_shares", "--metrics", "usdr"]
    given += ["--outputs", "masked", "--model", f"before={model}", f"after={tuned}", "--output_dir", scores]
    run("mss-lm evaluate", *given)
    print_scores(scores / "summary.json", model, tuned)
    return 0


def run(command: str, *given) -> None:
    """Run a command, in this process, which has torch in memory already; one that fails ends it with its exit code."""
    line = [*command.split(), *map(str, given)]
    print(f"\n$ {shlex.join(line)}", flush=True)
    status = mss_lm(line[1:]) if line[0] == "mss-lm" else import_module("train_accelerate").main(line[2:])
    if status:
        sys.exit(status)


def hold_out(manifest: Path, names: list[str]) -> None:
    """Keep songs of a manifest for scores alone: those named, or every fifth of which all four stems are known."""
    songs = read_manifest(manifest)
    complete = {song.id: song for song in songs if all(known_stems(song, STEMS))}
    if unknown := sorted(set(names) - set(complete)):
        raise ValueError(f"--held_out takes songs of which all stems are known, {list(complete)}, got {unknown}.")
    held_out = names or list(complete)[::5][:5]
    for song in songs:
        song.split = "validation" if song.id in held_out else "train"
    if len({song.split for song in songs}) < 2:
        raise ValueError(
            f"Of {len(songs)} song(s) {len(held_out)} would be held out: some must be left to learn from, and one to "
            "tell whether it helped. Add a song, or cut one into two folders; scores will flatter then."
        )
    manifest.write_text("".join(f"{song.to_json()}\n" for song in songs), encoding="utf-8")
    print(f"Held out, for scores alone: {', '.join(held_out)}", flush=True)


def print_scores(summary: Path, model: str, tuned: Path) -> None:
    systems, means = json.loads(summary.read_text())["systems"], {}
    print(f"\n{'usdr of held-out songs, dB':28}" + "".join(f"{stem:>8}" for stem in (*STEMS, "mean")))
    for name, label in SYSTEMS.items():
        values = [systems[name]["scores"]["usdr"].get(stem, {}).get("mean") for stem in STEMS]
        defined = [value for value in values if value is not None]  # a stem may be silent in all of the songs
        means[name] = sum(defined) / max(len(defined), 1)
        figures = "".join(f"{'-':>8}" if value is None else f"{value:8.2f}" for value in (*values, means[name]))
        print(f"{label:28}{figures}")
    if means["after masked"] > means["before masked"]:
        print(f"\nIt helped. The tuned weights are in {tuned}:\n  mss-lm separate song.mp3 --model {tuned}")
    else:
        print(f"\nIt did not help: stay with {model}. More songs help more than more minutes.")


if __name__ == "__main__":
    sys.exit(main())
