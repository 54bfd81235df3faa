"""Songs of manifests as small mono Opus files: a corpus that travels to a machine with little room for it.

    python -m data_mss.opus_copies data/free data/lmms --output_dir carry/songs --kbps 32 --max_seconds 240

Writes `SPLIT/ID/STEM.opus` below the output folder, and `manifest.jsonl`. Training is mono anyway; of longer songs the
middle is kept. Opus knows 48 kHz only, which is what training wants.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from .audio_files import add_up, read_mono
from .manifest import ManifestError, ManifestWriter, Song, read_manifest
from .preparing import PrepareReport, copied_from, copy_of, prepare_songs, require_different_ids

SAMPLING_RATE = 48000
KBPS = (6.0, 256.0)  # a channel, as libsndfile maps its compression level from 1 to 0


def copy_as_opus(
    manifests: Iterable[str | Path], output_dir: Path, kbps: float = 32.0, max_seconds: float | None = None
) -> PrepareReport:
    """Write the copies; those that are there already stay.

    Args:
        kbps: mean of a stem, in kbit/s; silence takes less.
        max_seconds: of a song, from its middle; None: all of it.

    Raises:
        ValueError: a rate that Opus does not have, two songs of one id, a manifest that is none, or copies that were
            made otherwise.
    """
    if not KBPS[0] <= kbps <= KBPS[1]:
        raise ValueError(f"`kbps` must lie in {KBPS[0]:g} to {KBPS[1]:g}, got {kbps:g}.")
    songs = [song for manifest in manifests for song in read_manifest(manifest)]
    require_different_ids(songs)
    wanted = {song.id: copied_from(song, kbps=kbps, max_seconds=max_seconds) for song in songs}
    jobs = ((song.id, lambda s=song: _copy(s, output_dir, kbps, max_seconds)) for song in songs)
    return prepare_songs(ManifestWriter(output_dir / "manifest.jsonl"), jobs, "copy", wanted)


def _copy(song: Song, output_dir: Path, kbps: float, max_seconds: float | None) -> Song:
    import soundfile

    duration = min(song.duration, max_seconds or song.duration)
    start = round((song.duration - duration) / 2 * SAMPLING_RATE)
    folder = output_dir / song.split / song.id
    folder.mkdir(parents=True, exist_ok=True)
    stems = {}
    for stem in song.stems:
        files = [read_mono(path, SAMPLING_RATE, song.sampling_rate) for path in song.paths(stem)]
        if not files:
            continue
        middle = add_up(files)[start : start + round(duration * SAMPLING_RATE)].clamp(-1, 1)
        path = folder / f"{stem}.opus"
        level = (KBPS[1] - kbps) / (KBPS[1] - KBPS[0])
        soundfile.write(path, middle.numpy(), SAMPLING_RATE, format="OGG", subtype="OPUS", compression_level=level)
        stems[stem] = [str(path)]
    return copy_of(song, stems, duration, SAMPLING_RATE)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", metavar="MANIFEST", help="files, or folders of them")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--kbps", type=float, default=32.0, help="mean bit rate of a stem (default: %(default)g)")
    parser.add_argument("--max_seconds", type=float, help="of a song, from its middle (default: all)")
    options = parser.parse_args(arguments)
    try:
        report = copy_as_opus(options.manifests, options.output_dir, options.kbps, options.max_seconds)
    except (ManifestError, ValueError) as error:
        print(f"opus_copies: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in options.output_dir.rglob("*.opus"))
    print(f"{options.output_dir}: {report}, {size / 2**20:.1f} MiB of audio there")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
