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

from data_mss.manifest import SPLITS, STEMS

from .errors import EXPECTED_ERRORS, fail


def add_arguments(parser: argparse.ArgumentParser):
    preparers = parser.add_subparsers(dest="preparer", required=True, metavar="WHAT")
    for add in (_add_musdb18, _add_stems, _add_pseudo_label, _add_render, _add_pack):
        add(preparers)


def _add_musdb18(preparers):
    parser = _add(preparers, "musdb18", "MUSDB18-HQ (wav) or MUSDB18 (.stem.mp4), with the customary validation songs")
    parser.add_argument("input_dir", type=Path, help="folder that holds train/ and test/")


def _add_stems(preparers):
    parser = _add(preparers, "stems", "folders of stems: song/vocals.*, drums.*, bass.*, other.*")
    parser.add_argument("input_dir", type=Path, help="folder of song folders, searched through")
    _add_split(parser)
    parser.add_argument("--validation_songs", nargs="*", default=[], metavar="NAME", help="song folders for validation")
    parser.add_argument(
        "--source", default="stems", help="name by which datasets weigh this corpus (default: %(default)s)"
    )


def _add_pseudo_label(preparers):
    parser = _add(preparers, "pseudo-label", "songs without stems, separated by a teacher")
    parser.add_argument("input_dir", type=Path, help="folder of songs, searched through")
    parser.add_argument(
        "--teacher",
        choices=["spleeter", "htdemucs", "bs_roformer", "command"],
        default="spleeter",
        help="spleeter works without a download, with two stems (default: %(default)s)",
    )
    parser.add_argument("--checkpoint", help="weights of bs_roformer; file or name of htdemucs's")
    parser.add_argument("--config", help="of bs_roformer: the YAML beside its checkpoint")
    parser.add_argument("--command", metavar="TEMPLATE", help="of the teacher command: 'tool {input} --out {output}'")
    activities = ["silero", "energy", "all"]
    parser.add_argument("--activity", choices=activities, default="silero", help="how singing is found")
    for name, seconds, what in (
        ("max_gap_s", 1.0, "closer segments are joined"),
        ("min_segment_s", 2.0, "shorter ones are dropped"),
    ):
        parser.add_argument(f"--{name}", type=float, default=seconds, help=f"{what} (default: %(default)s)")
    parser.add_argument("--device", help="of the teacher (default: Accelerate's, or cuda if there is one)")
    parser.add_argument("--shard_index", type=int, help="default: this process of an Accelerate launch")
    parser.add_argument("--num_shards", type=int, help="default: processes of an Accelerate launch")
    _add_split(parser)


def _add_render(preparers):
    parser = _add(preparers, "render", "songs composed and played here, by seed")
    parser.add_argument("--hours", type=float, required=True, help="length of the corpus")
    parser.add_argument(
        "--soundfont", nargs="+", required=True, metavar="FILE", help=".sf2, .sf3; 'synthesizer': a new sound each part"
    )
    for name, what in (
        ("midi", "MIDI files to arrange, beside composed songs"),
        ("vocals", "recordings of vocals to place over the songs"),
        ("speech", "recordings of speech to make singing from"),
        ("choir", "sung vowels for backing vocals: NAME_A3.wav, NAME_C#4.wav, ..."),
    ):
        parser.add_argument(f"--{name}", metavar="DIR", help=what)
    for name, what in (
        ("drums", "a kit each: kick*.wav or Kick_v01.wav, _v02, ... (harder); 'synthesizer': a new kit each song"),
        ("basses", "an instrument each: eb3_ff_rr1.wav, ..."),
    ):
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="DIR", help=what)
    parser.add_argument(
        "--grooves", metavar="DIR", help="drumming of people: the Groove MIDI Dataset, with its info.csv"
    )
    parser.add_argument(
        "--credits", metavar="FILE", help="YAML with a line for each file and folder given, in place of --licence"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="of all songs, e.g. test for a soundfont of its own (default: 90, 5 and 5 %% of the songs)",
    )
    parser.add_argument("--num_workers", type=int, default=2, help="processes (default: %(default)s)")


def _add_pack(preparers):
    parser = _add(preparers, "pack", "songs of manifests as arrays that training reads fastest")
    parser.add_argument("manifests", type=Path, nargs="+", metavar="MANIFEST", help="files, or folders of them")
    parser.add_argument("--sampling_rate", type=int, default=48000, help="in hertz (default: %(default)s)")
    others = "others are added to other (default: %(default)s)"
    parser.add_argument("--stems", nargs="+", default=list(STEMS), metavar="STEM", help=others)


def _add(preparers, name: str, summary: str) -> argparse.ArgumentParser:
    parser = preparers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the manifest and of what is made")
    if name not in ("musdb18", "pack"):
        parser.add_argument("--licence", help="of the audio, written to the manifest")
    return parser


def _add_split(parser: argparse.ArgumentParser):
    parser.add_argument("--split", choices=SPLITS, default="train", help="default: %(default)s")


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
    from data_mss.labelling import load_teacher, prepare_pseudo_labels
    from data_mss.sharding import ends_together

    teacher = load_teacher(
        options.teacher,
        checkpoint=options.checkpoint,
        config=options.config,
        command=options.command,
        device=options.device,
    )
    with ends_together():
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
    from data_mss.rendering import RenderConfig, prepare_render

    config = RenderConfig(
        soundfonts=tuple(options.soundfont),
        midi_dir=options.midi,
        vocals_dir=options.vocals,
        speech_dir=options.speech,
        drums_dirs=tuple(options.drums),
        bass_dirs=tuple(options.basses),
        grooves_dir=options.grooves,
        choir_dir=options.choir,
        seed=options.seed,
        split=options.split,
    )
    return prepare_render(
        options.output_dir, options.hours, config, options.num_workers, options.licence, options.credits
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
