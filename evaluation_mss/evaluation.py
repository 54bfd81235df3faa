"""Systems x excerpts -> scores: resumable, shared by several processes, and summed up in tables."""

import functools
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from data_mss.sharding import shard_of_this_process

from .metric_inputs import MetricUnavailable
from .metric_table import METRICS, Metric, Sounds, metric_versions
from .protocol import CODEC, SongCodec, score_names, score_song
from .results import KeptAudio, Key, Result, ScoreLines, collect, pair_key, read_records, replace_text
from .roundtrip import CodecRoundTrip
from .songs import STEMS, EvaluationSong, Excerpt, file_name
from .summary import summarize
from .systems import System
from .tables import render_tables


@dataclass
class EvaluationReport:
    """Outcome of a run, in pairs of system and excerpt.

    Args:
        scored, kept: now; before.
        pending: not by this process nor, so far, by another one.
        failures: "system on excerpt" -> what the system, or reading the excerpt, said.
        unavailable: metric -> why it could not run.
    """

    scored: int = 0
    kept: int = 0
    pending: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        scored = f"{self.scored} separation{'' if self.scored == 1 else 's'} scored"
        text = f"{scored}, {self.kept} already there, {len(self.failures)} failed"
        if self.pending:
            text += f", {self.pending} left to other processes"
        problems = {**self.failures, **{f"{metric} could not run": why for metric, why in self.unavailable.items()}}
        return text + "".join(f"\n  {name}: {' '.join(reason.split())}" for name, reason in problems.items())


def evaluate(
    systems: Iterable[System],
    excerpts: Iterable[Excerpt],
    output_dir: str | os.PathLike,
    metrics: dict[str, Metric] = METRICS,
    roundtrip: CodecRoundTrip | None = None,
    seed: int = 0,
    description: str = "Excerpts",
    ablations: Iterable[str] = (),
    keep_audio: int = 0,
    overwrite: bool = False,
    shard_index: int | None = None,
    num_shards: int | None = None,
) -> EvaluationReport:
    """Score systems on excerpts, as far as that is not done yet, and write what all scores in the folder come to.

    `output_dir/scores-<shard>-of-<shards>.jsonl`, a line for each pair of system and excerpt; `summary.json` and
    `tables.md` of all shards' lines, written by every process at its end: the last one that ends has them all. A pair
    is known by the system's name and identity and the excerpt's name and length; so another checkpoint is scored anew,
    and the old one's lines stay and do not count. What failed is tried again, and so is what could not run and now can.

    Args:
        metrics: see `metric_table.METRICS`.
        roundtrip: adds the scores in `*_codec`.
        seed: of the bootstrap, and said in every table.
        description: of the excerpts, for the tables' head.
        ablations: names of the systems of Table 3; all systems are compared with the first.
        keep_audio: of so many excerpts, sound is kept in `output_dir/audio`.
        overwrite: score again what is there.
        shard_index, num_shards: excerpt k belongs to shard k % num_shards. Accelerate's rank and world size if neither
            is given.

    Raises:
        ValueError: no systems, excerpts or metrics; names that are not unique or cannot be files'.
    """
    evaluation = _Evaluation(list(systems), list(excerpts), Path(output_dir), dict(metrics), roundtrip, keep_audio)
    report = evaluation.run(shard_of_this_process(shard_index, num_shards), overwrite)
    facts = {"description": description, "seed": seed, "ablations": list(ablations)}
    report.pending = evaluation.write_summary(facts)
    return report


class _Evaluation:
    """What has to be done in a folder, and doing it; arguments as in `evaluate`."""

    def __init__(
        self,
        systems: list[System],
        excerpts: list[Excerpt],
        output_dir: Path,
        metrics: dict[str, Metric],
        roundtrip: CodecRoundTrip | None,
        keep_audio: int,
    ):
        names = [system.name for system in systems]
        wrong = sorted({name for name in names if names.count(name) > 1 or file_name(name) != name})
        if wrong:
            raise ValueError(
                f"Systems need names of their own that can be those of folders, got {wrong}: on the command line, give "
                "NAME=PATH."
            )
        for what, values in {"system": systems, "excerpt": excerpts, "metric": metrics}.items():
            if not values:
                raise ValueError(f"There is no {what} to evaluate.")
        self.systems, self.excerpts, self.output_dir = systems, excerpts, output_dir
        self.metrics, self.roundtrip = metrics, roundtrip
        self.codec = roundtrip.identity if roundtrip is not None else None
        self.audio = KeptAudio(output_dir / "audio", excerpts[:keep_audio])
        self._cannot_run = functools.cache(self._probe)

    def run(self, shard: tuple[int, int], overwrite: bool) -> EvaluationReport:
        index, number = shard
        lines = ScoreLines(self.output_dir, f"{index:05d}-of-{number:05d}")
        results = {} if overwrite else self.results()
        report = EvaluationReport()
        mine = self.excerpts[index::number]
        with tqdm(
            total=len(mine) * len(self.systems), desc="Evaluation", unit="separation", file=sys.stderr
        ) as progress:
            for excerpt in mine:
                todo = {}
                for system in self.systems:
                    result = results.get(pair_key(system, excerpt))
                    missing = self.missing_metrics(result)
                    if result is not None:
                        names = result.unavailable.keys() & set().union(
                            *map(self._forms, self.metrics.keys() - missing)
                        )
                        report.unavailable |= {name: result.unavailable[name] for name in names}
                    if missing or self.audio.lacks(system, excerpt.name):
                        todo[system.name] = (system, missing)
                report.kept += len(self.systems) - len(todo)
                progress.update(len(self.systems) - len(todo))
                if todo:
                    self._score_excerpt(excerpt, list(todo.values()), lines, report, progress)
        return report

    def results(self) -> dict[Key, Result]:
        return collect(read_records(self.output_dir), self.codec)

    def missing_metrics(self, result: Result | None) -> dict[str, Metric]:
        """Those that have to run for a pair; all if it failed; what could not run before, only if it can now."""
        if result is None or result.error is not None:
            return self.metrics
        missing = {}
        for name, metric in self.metrics.items():
            left = self._forms(name) - result.finished
            if left and not (left <= result.unavailable.keys() and self._cannot_run(name)):
                missing[name] = metric
        return missing

    def _forms(self, name: str) -> set[str]:
        return {name, name + CODEC} if self.codec and self.metrics[name].segmented else {name}

    def _is_reached(self, result: Result | None) -> bool:
        """Whether all that was asked for of a pair was tried, with or without success."""
        if result is None or result.error is not None:
            return result is not None
        return set().union(*map(self._forms, self.metrics)) <= result.finished | result.unavailable.keys()

    def _probe(self, name: str) -> bool:
        """Whether a metric lacks its package or its weights: asked with a second of noise."""
        noise = torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(0)) / 10
        sound = noise if self.metrics[name].joint else noise[0]
        try:
            self.metrics[name].compute(Sounds(sound, sound, noise[0], 16000))
        except MetricUnavailable:
            return True
        except Exception:  # it runs; what it makes of noise does not matter
            return False
        return False

    def _score_excerpt(
        self,
        excerpt: Excerpt,
        todo: list[tuple[System, dict[str, Metric]]],
        lines: ScoreLines,
        report: EvaluationReport,
        progress: tqdm,
    ):
        """Separate and score one excerpt by all systems that have not; what fails costs no other its turn."""
        song, codec, unreadable = None, None, None
        try:
            song = excerpt.read()
            codec = SongCodec(self.roundtrip, song) if self.roundtrip is not None else None
        except Exception as error:
            unreadable = error
        for system, metrics in todo:
            record = {
                "system": system.name,
                "identity": system.identity,
                "excerpt": excerpt.name,
                "excerpt_s": excerpt.duration_s,
                "song": excerpt.song.id,
            }
            progress.set_postfix_str(f"{system.name}, {excerpt.name}", refresh=True)
            try:
                if unreadable is not None:
                    raise unreadable
                record |= self._score(system, song, metrics, codec)
            except Exception as error:  # any system may fail in any way
                reason = f"{type(error).__name__}: {error}"
                record["error"] = report.failures[f"{system.name} on {excerpt.name}"] = reason
                progress.write(f"failed: {system.name} on {excerpt.name}: {reason}", file=sys.stderr)
            else:
                report.scored += 1
                report.unavailable |= record["unavailable"]
            if metrics or "error" in record:  # without either, its sound was kept and nothing scored
                lines.add(record | {"date": datetime.now(UTC).isoformat(timespec="microseconds")})
            progress.update()

    def _score(self, system: System, song: EvaluationSong, metrics: dict[str, Metric], codec: SongCodec | None) -> dict:
        began = time.perf_counter()
        estimates = {stem: estimate.cpu() for stem, estimate in system.separate(song).items()}
        seconds = max(time.perf_counter() - began, 1e-6)
        _check(estimates, song)
        self.audio.write(system, song, estimates)
        scores, reasons = score_song(song, estimates, metrics, codec, system.generative)
        forms = sorted(set().union(*map(self._forms, metrics)))
        duration = song.mixture.shape[-1] / song.sampling_rate
        versions = metric_versions()
        return {
            "duration_s": round(duration, 3),
            "seconds": round(seconds, 3),
            "speed": round(duration / seconds, 3),
            "scores": scores,
            "metrics": [form for form in forms if form not in reasons],
            "unavailable": reasons,
            "versions": {metric: versions[metric] for metric in metrics if metric in versions},
            "codec": self.codec,
        }

    def write_summary(self, facts: dict) -> int:
        """Write `summary.json` and `tables.md`; returns how many pairs are still to be done.

        Other processes write scores and the same two files meanwhile. So it looks again after writing: whoever writes
        last has seen all that was there, or somebody comes after it.
        """
        while True:
            records = read_records(self.output_dir)
            scores = score_names(self.metrics, self.codec is not None)
            results = collect(records, self.codec)
            summary = facts | {"stems": list(STEMS), "codec": self.codec}
            summary |= summarize(
                self.systems, self.excerpts, results, scores, list(STEMS), facts["seed"], facts["ablations"]
            )
            pairs = [results.get(pair_key(system, excerpt)) for system in self.systems for excerpt in self.excerpts]
            summary["num_pending"] = sum(not self._is_reached(result) for result in pairs)
            replace_text(self.output_dir / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
            replace_text(self.output_dir / "tables.md", render_tables(summary))
            if len(read_records(self.output_dir)) == len(records):
                return summary["num_pending"]


def _check(estimates: dict[str, torch.Tensor], song: EvaluationSong):
    num_channels, num_samples = song.mixture.shape
    for stem, estimate in estimates.items():
        if estimate.ndim != 2 or len(estimate) not in (1, num_channels) or estimate.shape[1] != num_samples:
            raise ValueError(
                f"The estimate of {stem} is {tuple(estimate.shape)}, the song {song.name!r} is "
                f"{tuple(song.mixture.shape)}."
            )
        if not estimate.isfinite().all():
            raise ValueError(f"The estimate of {stem} holds NaN or infinity.")
