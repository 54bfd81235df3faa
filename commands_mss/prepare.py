"""Turn recordings into manifests that training reads.

examples:
  mss-lm prepare musdb18 MUSDB18-HQ --output_dir data/musdb18
  mss-lm prepare stems my_songs --output_dir data/mine --licence CC0-1.0
  mss-lm prepare pseudo-label songs --output_dir data/labelled --teacher spleeter
  mss-lm prepare render --hours 1 --soundfont FluidR3_GM.sf2 --output_dir data/rendered
  mss-lm prepare pack data/musdb18 data/rendered --output_dir data/packed

Each can be stopped and started again: finished songs stay as they are. Broken files are skipped and reported.
"""

import argparse
from pathlib import Path

from .errors import EXPECTED_ERRORS, fail


def add_arguments(parser: argparse.ArgumentParser):
    preparers = parser.add_subparsers(dest="preparer", required=True, metavar="WHAT")

    musdb18 = _add(preparers, "musdb18", "MUSDB18-HQ (wav) or MUSDB18 (.stem.mp4), with the customary validation songs")
    musdb18.add_argument("input_dir", type=Path, help="folder that holds train/ and test/")

    stems = _add(preparers, "stems", "folders of stems: song/vocals.*, drums.*, bass.*, other.*")
    stems.add_argument("input_dir", type=Path, help="folder of song folders, searched through")
    _add_split(stems)
    stems.add_argument("--validation_songs", nargs="*", default=[], metavar="NAME", help="song folders for validation")
    stems.add_argument(
        "--source", default="stems", help="name by which datasets weigh this corpus (default: %(default)s)"
    )

    label = _add(preparers, "pseudo-label", "songs without stems, separated by a teacher")
    label.add_argument("input_dir", type=Path, help="folder of songs, searched through")
    label.add_argument(
        "--teacher",
        choices=["spleeter", "htdemucs", "bs_roformer", "command"],
        default="spleeter",
        help="spleeter works without a download, with two stems (default: %(default)s)",
    )
    label.add_argument("--checkpoint", help="weights of bs_roformer; file or name of htdemucs's")
    label.add_argument("--config", help="of bs_roformer: the YAML beside its checkpoint")
    label.add_argument("--command", metavar="TEMPLATE", help="of the teacher command: 'tool {input} --out {output}'")
    label.add_argument("--activity", choices=["silero", "energy", "all"], default="silero", help="how singing is found")
    label.add_argument("--max_gap_s", type=float, default=1.0, help="closer segments are joined (default: %(default)s)")
    label.add_argument(
        "--min_segment_s", type=float, default=2.0, help="shorter ones are dropped (default: %(default)s)"
    )
    label.add_argument("--device", help="of the teacher (default: Accelerate's, or cuda if there is one)")
    label.add_argument("--shard_index", type=int, help="default: this process of an Accelerate launch")
    label.add_argument("--num_shards", type=int, help="default: processes of an Accelerate launch")
    _add_split(label)

    render = _add(preparers, "render", "songs composed and played here, by seed")
    render.add_argument("--hours", type=float, required=True, help="length of the corpus")
    render.add_argument("--soundfont", nargs="+", required=True, metavar="FILE", help=".sf2 or .sf3 files")
    render.add_argument("--midi", metavar="DIR", help="MIDI files to arrange, beside composed songs")
    render.add_argument("--vocals", metavar="DIR", help="recordings of vocals to place over the songs")
    render.add_argument("--speech", metavar="DIR", help="recordings of speech to make singing from")
    render.add_argument("--choir", metavar="DIR", help="sung vowels for backing vocals: NAME_A3.wav, NAME_C#4.wav, ...")
    render.add_argument(
        "--drums",
        nargs="+",
        default=[],
        metavar="DIR",
        help="a kit each: kick*.wav or Kick_v01.wav, _v02, ... (harder)",
    )
    render.add_argument(
        "--basses", nargs="+", default=[], metavar="DIR", help="an instrument each: eb3_ff_rr1.wav, ..."
    )
    render.add_argument(
        "--grooves", metavar="DIR", help="drumming of people: the Groove MIDI Dataset, with its info.csv"
    )
    render.add_argument(
        "--credits", metavar="FILE", help="YAML with a line for each file and folder given, in place of --licence"
    )
    render.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    render.add_argument(
        "--split",
        choices=["train", "validation", "test"],
        help="of all songs, e.g. test for a soundfont of its own (default: 90, 5 and 5 %% of the songs)",
    )
    render.add_argument("--num_workers", type=int, default=2, help="processes (default: %(default)s)")

    pack = _add(preparers, "pack", "songs of manifests as arrays that training reads fastest")
    pack.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST", help="files, or folders of them")
    pack.add_argument("--sampling_rate", type=int, default=48000, help="in hertz (default: %(default)s)")
    pack.add_argument(
        "--stems",
        nargs="+",
        default=["vocals", "drums", "bass", "other"],
        metavar="STEM",
        help="others are added to other (default: %(default)s)",
    )


def _add(preparers, name: str, summary: str) -> argparse.ArgumentParser:
    parser = preparers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the manifest and of what is made")
    if name not in ("musdb18", "pack"):
        parser.add_argument("--licence", help="of the audio, written to the manifest")
    return parser


def _add_split(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--split", choices=["train", "validation", "test"], default="train", help="default: %(default)s"
    )


def run(options: argparse.Namespace) -> int:
    try:
        report = PREPARERS[options.preparer](options)
    except EXPECTED_ERRORS as error:
        return fail(f"mss-lm prepare {options.preparer}", error)
    print(f"{options.output_dir}: {report}")
    return 1 if report.failures else 0


# Imports are inside the functions so that `--help` answers at once.
def _musdb18(options: argparse.Namespace):
    from data_mss.musdb18 import prepare_musdb18

    return prepare_musdb18(options.input_dir, options.output_dir)


def _stems(options: argparse.Namespace):
    from data_mss.stem_folders import prepare_stem_folders

    return prepare_stem_folders(
        options.input_dir,
        options.output_dir,
        split=options.split,
        validation_songs=tuple(options.validation_songs),
        source=options.source,
        licence=options.licence or "unknown",
    )


def _pseudo_label(options: argparse.Namespace):
    from data_mss.pseudo_labels import prepare_pseudo_labels
    from data_mss.teachers import load_teacher

    teacher = load_teacher(
        options.teacher,
        checkpoint=options.checkpoint,
        config=options.config,
        command=options.command,
        device=options.device,
    )
    return prepare_pseudo_labels(
        options.input_dir,
        options.output_dir,
        teacher,
        activity=options.activity,
        max_gap_s=options.max_gap_s,
        min_segment_s=options.min_segment_s,
        licence=options.licence or "unknown",
        split=options.split,
        shard_index=options.shard_index,
        num_shards=options.num_shards,
    )


def _render(options: argparse.Namespace):
    from data_mss.render import prepare_render

    return prepare_render(
        options.output_dir,
        options.hours,
        options.soundfont,
        midi_dir=options.midi,
        vocals_dir=options.vocals,
        speech_dir=options.speech,
        drums_dirs=options.drums,
        bass_dirs=options.basses,
        grooves_dir=options.grooves,
        choir_dir=options.choir,
        seed=options.seed,
        num_workers=options.num_workers,
        licence=options.licence,
        credits=options.credits,
        split=options.split,
    )


def _pack(options: argparse.Namespace):
    from data_mss.packing import prepare_packed

    return prepare_packed(options.manifests, options.output_dir, options.sampling_rate, options.stems)


PREPARERS = {
    "musdb18": _musdb18,
    "stems": _stems,
    "pseudo-label": _pseudo_label,
    "render": _render,
    "pack": _pack,
}
