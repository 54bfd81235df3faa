"""Songs without stems -> a teacher's stems, cut into the segments in which somebody sings -> manifest."""

import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from processing_mss import AUDIO_SUFFIXES, read_audio, resample

from ..manifest import SPLITS, canonical_stem, require
from ..preparing import PrepareReport, made_from
from ..sharding import shard_of_this_process
from .label_folder import LabelFolder
from .teachers import Teacher
from .voice_activity import ACTIVITIES, find_segments


def prepare_pseudo_labels(
    input_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    teacher: Teacher,
    activity: str = "silero",
    max_gap_s: float = 1.0,
    min_segment_s: float = 2.0,
    licence: str = "unknown",
    split: str = "train",
    shard_index: int | None = None,
    num_shards: int | None = None,
) -> PrepareReport:
    """Separate all songs of a folder and write the segments with vocals, as 16-bit FLAC at the teacher's rate.

    `output_dir/<song>/<segment>/<stem>.flac`, and one entry a segment, "<song>#<segment>", in
    `output_dir/manifest-<shard>-of-<shards>.jsonl`. The teacher's stems are mapped by `canonical_stem` and those of the
    same name summed; whatever has no other place is "other". Spleeter's accompaniment is "drums+bass+other", a sum:
    training learns vocals from such songs, and nothing about what is in the sum (`manifest.known_stems`).

    The song is the unit of work. Its folder gets its name when it is complete, then its lines are written, then it is
    listed in `output_dir/progress/`; a run that was killed goes on from any of these points. Songs without any segment
    are listed only.

    Args:
        input_dir: searched through, folders below it too. Hidden files are left out.
        teacher: see `teachers.load_teacher`.
        activity: "silero", "energy" or "all"; `voice_activity.find_segments`.
        max_gap_s, min_segment_s: segments closer than this are joined; shorter than this (after joining) are dropped.
        licence: of the songs.
        shard_index, num_shards: song k (sorted by path) belongs to shard k % num_shards. Accelerate's rank and world
            size if neither is given.

    Returns:
        The outcome for the songs of this shard. Songs that cannot be read or separated are skipped and reported.

    Raises:
        ValueError: no song, settings that do not go together, or labels that were made from other songs or otherwise.
    """
    input_dir, output_dir = Path(input_dir), Path(output_dir)
    require(split in SPLITS, "split", f"one of {list(SPLITS)}", split)
    require(activity in ACTIVITIES, "activity", f"one of {list(ACTIVITIES)}", activity)
    require(max_gap_s >= 0, "max_gap_s", "0 or more", max_gap_s)
    require(min_segment_s > 0, "min_segment_s", "positive", min_segment_s)
    if activity != "all" and "vocals" not in map(canonical_stem, teacher.stems):
        raise ValueError(f"The activity {activity!r} needs vocals, the teacher has {teacher.stems}: take 'all'.")
    songs = songs_below(input_dir, output_dir)
    shard_index, num_shards = shard_of_this_process(shard_index, num_shards)
    shard = f"{shard_index:05d}-of-{num_shards:05d}"
    labels = LabelFolder(output_dir, shard, source=f"pseudo-label:{teacher.name}", split=split, licence=licence)
    settings = {"teacher": {"name": teacher.name, **teacher.settings}, "activity": activity, "split": split}
    settings |= {"max_gap_s": max_gap_s, "min_segment_s": min_segment_s, "licence": licence}
    wanted = {name: made_from([input_dir / name], **settings) for name in songs[shard_index::num_shards]}
    labels.check(wanted)

    report = PrepareReport()
    with tqdm(wanted, desc=f"Pseudo-labels {shard}", unit="song", file=sys.stderr) as progress:
        for name in progress:
            if name in labels.finished or labels.is_complete(name):
                if name not in labels.finished:  # killed after the song's folder was there, before the song was listed
                    labels.register(name, wanted[name], recover=True)
                report.kept += 1
                continue
            try:
                mixture, stems = _separate(input_dir / name, teacher)
                segments = find_segments(
                    activity, stems.get("vocals"), mixture, teacher.sampling_rate, max_gap_s, min_segment_s
                )
            except (ValueError, OSError) as error:
                report.failures[name] = str(error)
                progress.write(f"skipped {name}: {error}", file=sys.stderr)
                continue
            # Errors from here on (a full disk) are no fault of the song, and stop the run.
            labels.write(name, segments, mixture, stems, teacher.sampling_rate, wanted[name])
            labels.register(name, wanted[name])
            report.written += 1
    return report


def songs_below(input_dir: Path, output_dir: Path) -> list[str]:
    """Audio files below a folder as paths relative to it, sorted; those below `output_dir` are left out.

    Raises:
        ValueError: there is none, or the two folders are the same.
    """
    if input_dir.resolve() == output_dir.resolve():
        raise ValueError(f"The songs and the output must lie in different folders, both are {input_dir}.")
    names = []
    for folder, subfolders, files in os.walk(input_dir):
        subfolders[:] = [name for name in subfolders if Path(folder, name).resolve() != output_dir.resolve()]
        names += [
            Path(folder, file).relative_to(input_dir).as_posix()
            for file in files
            if Path(file).suffix.lower() in AUDIO_SUFFIXES and not file.startswith(".")
        ]
    if not names:
        raise ValueError(f"No songs below {input_dir}: looked for {sorted(AUDIO_SUFFIXES)}.")
    return sorted(names)


def _separate(path: Path, teacher: Teacher) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The song and its stems under our names, `(C, T)` each, at the teacher's rate."""
    str(path).encode("utf-8")  # a name that is no text would break the manifest: UnicodeEncodeError is a ValueError
    samples, sampling_rate = read_audio(path)
    mixture = resample(torch.from_numpy(samples), sampling_rate, teacher.sampling_rate)
    if mixture.numel() == 0 or not mixture.isfinite().all():
        raise ValueError(f"{path} has no samples, or values that are no numbers.")
    stems: dict[str, torch.Tensor] = {}
    for stem, waveform in teacher.separate(mixture).items():
        if waveform.shape != mixture.shape or not waveform.isfinite().all():
            raise ValueError(
                f"The teacher's {stem} is {tuple(waveform.shape)} for a song {tuple(mixture.shape)}, or not finite."
            )
        name = canonical_stem(stem) or "other"
        stems[name] = stems[name] + waveform if name in stems else waveform
    return mixture, stems
