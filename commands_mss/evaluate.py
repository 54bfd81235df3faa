"""Score models, baselines and finished stems by the paper's metrics.

examples:
  mss-lm evaluate --manifests data/musdb18 --model runs/separator/final --output_dir scores
  mss-lm evaluate --manifests data/musdb18 --baseline spleeter htdemucs --bounds mixture reference --output_dir scores
  mss-lm evaluate --manifests data/musdb18 --stems_dir theirs=separated --metrics usdr csdr --output_dir scores
      stems that any program wrote as separated/SONG/vocals.wav, ... or separated/vocals/SONG.wav
  mss-lm evaluate --manifests data/musdb18 --model runs/separator/final --bounds codec codec_filtered reference \\
      --codec hcodec --codec_roundtrip --output_dir scores
      the paper's protocol beside the plain one
  mss-lm evaluate --manifests data/mine --model greedy=runs/a/final --no-do_sample --output_dir scores
      options of quality hold for all models of a call; another decoding is another call, under another name
  mss-lm evaluate --manifests data/mine --excerpt_s 20 --starts_s 30 90 --baseline spleeter --report --output_dir scores
      excerpts of 20 s; report.html with spectrograms and audio players

The output folder gets scores-*.jsonl (a line for each song and system), summary.json and tables.md. A run that was
stopped goes on where it was, and another one into the same folder adds its systems, metrics or songs; tables show what
was asked for last. A metric that cannot run says why, and so does a system that fails on a song; the rest go on.

exit codes: 0 all is scored, 1 something failed or a metric of --metrics cannot run, 2 wrong usage, 130 interrupted
"""

import argparse
from pathlib import Path

from data_mss.manifest import SPLITS

from .errors import EXPECTED_ERRORS, fail
from .separate import add_quality_arguments

METRICS = ["visqol", "dnsmos", "nisqa", "usdr", "si_sdr", "csdr", "log_wmse", "mel_distance"]
BASELINES = ["spleeter", "htdemucs", "bs_roformer", "scnet"]
BOUNDS = ["mixture", "equal_shares", "codec", "codec_filtered", "ideal_ratio_mask", "reference"]


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="folder of scores and tables")
    _add_songs(parser)
    _add_systems(parser)
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--metrics", nargs="+", choices=METRICS, default=METRICS, metavar="METRIC", help=f"default: {' '.join(METRICS)}"
    )
    group.add_argument("--codec", metavar="PATH", help="folder or Hub id of a whole codec, for what follows and bounds")
    group.add_argument(
        "--codec_roundtrip",
        action="store_true",
        help="also as the paper does: references, and estimates that are no codec's output, go through the codec first",
    )
    group.add_argument("--overwrite", action="store_true", help="score again what is there already")
    group = parser.add_argument_group("report")
    group.add_argument("--report", action="store_true", help="report.html: tables, spectrograms, audio players")
    group.add_argument(
        "--report_excerpts", type=int, default=3, metavar="N", help="so many are heard in it (default: %(default)s)"
    )
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="cpu, cuda, cuda:1 (default: Accelerate's, or cuda if there is one)")
    group.add_argument("--shard_index", type=int, help="default: this process of an Accelerate launch")
    group.add_argument("--num_shards", type=int, help="default: processes of an Accelerate launch")
    # Of --model, as `mss-lm separate` has them. The seed is the bootstrap's too.
    add_quality_arguments(parser)
    parser.set_defaults(seed=0)


def _add_songs(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("songs")
    group.add_argument("--manifests", nargs="+", required=True, metavar="MANIFEST", help="files, or folders of them")
    group.add_argument("--split", nargs="+", choices=SPLITS, default=["test"], help="default: test")
    group.add_argument("--max_songs", type=int, metavar="N", help="the first N of all manifests")
    group.add_argument("--excerpt_s", type=float, metavar="S", help="length of an excerpt (default: whole songs)")
    group.add_argument(
        "--starts_s",
        type=float,
        nargs="+",
        metavar="S",
        help="where excerpts begin (default: one from the middle); where none fits, the middle is taken",
    )
    group.add_argument(
        "--equal_loudness",
        action="store_true",
        help="mix all audible stems of an excerpt at one level, so that none is hard for being quiet",
    )


def _add_systems(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("systems, in the order of the tables")
    group.add_argument(
        "--bounds", nargs="+", choices=BOUNDS, default=[], metavar="BOUND", help=f"what is possible: {' '.join(BOUNDS)}"
    )
    group.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        metavar="NAME[=CHECKPOINT[,CONFIG[,CODE]]]",
        help=f"{' '.join(BASELINES)}; spleeter needs no download, docs/evaluation.md says what the others need",
    )
    group.add_argument(
        "--stems_dir",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="finished stems: FOLDER/SONG/STEM.wav or FOLDER/STEM/SONG.wav, any audio format",
    )
    group.add_argument(
        "--generated_dir",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="the same, if the stems are the codec's output already: --codec_roundtrip leaves them as they are",
    )
    group.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="[NAME=]PATH",
        help="folders or Hub ids of separators; several make Table 3 (ablations) too, with differences from the first",
    )
    group.add_argument(
        "--outputs",
        nargs="+",
        choices=["masked", "filtered", "generated"],
        help="of models, those that each of them has (default: all of them)",
    )


def run(options: argparse.Namespace) -> int:
    # Imported here so that `--help` answers at once.
    from data_mss.sharding import ends_together
    from evaluation_mss.evaluation import evaluate
    from evaluation_mss.metric_table import METRICS as TABLE
    from evaluation_mss.songs import find_excerpts

    try:
        # All that can be wrong with the options is found before the first song, not after hours.
        if options.report_excerpts < 0:
            raise ValueError(f"--report_excerpts must be at least 0, got {options.report_excerpts}.")
        excerpts = find_excerpts(
            options.manifests,
            options.split,
            options.starts_s,
            options.excerpt_s,
            options.max_songs,
            options.equal_loudness,
        )
        roundtrip = load_roundtrip(options)
        models = load_models(options)
        systems = [*load_others(options), *models]
        if not systems:
            raise ValueError("There is nothing to evaluate: give --model, --baseline, --stems_dir or --bounds.")
        with ends_together():
            report = evaluate(
                systems,
                excerpts,
                options.output_dir,
                metrics={name: TABLE[name] for name in options.metrics},
                roundtrip=roundtrip,
                seed=options.seed,
                description=describe(options),
                ablations=[system.name for system in models] if len(options.model) > 1 else [],
                keep_audio=options.report_excerpts if options.report else 0,
                overwrite=options.overwrite,
                shard_index=options.shard_index,
                num_shards=options.num_shards,
            )
        print(f"{options.output_dir}: {report}")
        if report.pending == 0:
            print(options.output_dir / "tables.md")
            if options.report:
                from evaluation_mss.report import write_report

                print(write_report(options.output_dir))
    except EXPECTED_ERRORS as error:
        return fail("mss-lm evaluate", error)
    # Who names no metrics wants those that can run here.
    return 1 if report.failures or (options.metrics is not METRICS and report.unavailable) else 0


def describe(options: argparse.Namespace) -> str:
    """What the tables say of the songs."""
    first = f", the first {options.max_songs}" if options.max_songs else ""
    loudness = ", stems at equal loudness" if options.equal_loudness else ""
    length = f"excerpts of {options.excerpt_s:g} s" if options.excerpt_s else "whole songs"
    names = [Path(manifest).resolve() for manifest in options.manifests]
    names = [path.parent.name if path.suffix == ".jsonl" else path.name for path in names]
    return f"Split {' and '.join(options.split)} of {', '.join(names)}{first}, {length}{loudness}"


def load_roundtrip(options: argparse.Namespace):
    """The codec for scores, or None without --codec_roundtrip."""
    if options.codec and not options.codec_roundtrip and not {"codec", "codec_filtered"} & set(options.bounds):
        raise ValueError("Nothing here uses --codec: add --codec_roundtrip, or --bounds codec codec_filtered.")
    if not options.codec_roundtrip:
        return None
    if options.codec is None:
        raise ValueError("--codec_roundtrip needs --codec, a whole codec (separators have its decoding half only).")
    from evaluation_mss.roundtrip import CodecRoundTrip

    return CodecRoundTrip(options.codec, options.device)


def load_others(options: argparse.Namespace) -> list:
    """Bounds, baselines and finished stems."""
    from evaluation_mss.baselines import load_baseline
    from evaluation_mss.bounds import load_bound
    from evaluation_mss.systems import StemFolderSystem

    systems = [load_bound(name, options.codec, options.device) for name in options.bounds]
    for given in options.baseline:
        name, _, files = given.partition("=")
        files = [file or None for file in files.split(",")]
        if len(files) > 3:
            raise ValueError(f"--baseline takes NAME=CHECKPOINT,CONFIG,CODE, got {given!r}.")
        systems.append(load_baseline(name, *files, device=options.device))
    for option, generative in (("stems_dir", False), ("generated_dir", True)):
        for given in getattr(options, option):
            name, _, folder = given.partition("=")
            if not (name and folder):
                raise ValueError(f"--{option} takes NAME=FOLDER, got {given!r}.")
            systems.append(StemFolderSystem(folder, name=name, generative=generative))
    return systems


def load_models(options: argparse.Namespace) -> list:
    """Each model in each output mode that it has, with those options of quality that the mode has.

    Raises:
        ValueError: a model has none of the outputs that were asked for, or no output here has an option that was given.
    """
    from evaluation_mss.systems import ModelSystem, outputs_of
    from processing_mss import SeparationOptions
    from processing_mss.options_mss import TOKEN_OPTIONS

    asked = {key: value for key, value in vars(options).items() if key in SeparationOptions.__dataclass_fields__}
    without = {"masked": {*TOKEN_OPTIONS, "seed"}, "filtered": set(), "generated": {"expected", "num_candidates"}}
    planned = []
    for given in options.model:
        name, separator, path = given.partition("=")
        if not separator or Path(given).is_dir():  # "runs/lr=1" is a folder
            name, path = "mss-lm" if len(options.model) == 1 else Path(given).name, given
        if not (name.strip() and path.strip()):
            raise ValueError(f"--model takes [NAME=]PATH, got {given!r}.")
        has = outputs_of(path)
        outputs = [output for output in options.outputs or has if output in has]
        if not outputs:
            raise ValueError(f"--outputs {' '.join(options.outputs)}: {name} has {has} only.")
        planned += [(path, output, f"{name} {output}") for output in outputs]
    used = {key for _, output, _ in planned for key in asked.keys() - without[output]} | {"seed"}  # the bootstrap's too
    if idle := [f"--{key}" for key, value in asked.items() if value is not None and key not in used]:
        raise ValueError(f"Nothing here uses {' '.join(idle)}: leave them out, or add --model or another of --outputs.")
    systems = []
    for path, output, name in planned:
        wanted = SeparationOptions(**{key: value for key, value in asked.items() if key not in without[output]})
        systems.append(ModelSystem(path, output, wanted, options.device, name))
    return systems
