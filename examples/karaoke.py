"""Take the voice out of every song of a folder.

python examples/karaoke.py my_songs --output_dir karaoke

writes karaoke/SONG.flac for each song of my_songs (wav, flac, mp3, ogg, m4a, ...), 16 bits, at the song's own rate and
as long as it is. Songs are read and written block by block, so that an hour takes no more memory than ten minutes, and
short ones share batches. Nothing is replaced: a file that is there already is an error of its song. A song that cannot
be read is named, and the others go on.

exit codes: 0 all songs are written, 1 some are not, 2 wrong usage, 130 interrupted
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm
from transformers import pipeline

import mss_lm  # noqa: F401  (makes transformers know the separator)
from commands_mss.errors import EXPECTED_ERRORS, fail
from data_mss.sharding import default_device
from processing_mss import AUDIO_SUFFIXES, AudioReader, AudioWriter, damage_message, fitting_dtype, limit_blocks


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of songs")
    parser.add_argument("--output_dir", type=Path, default=Path("karaoke"), help="default: %(default)s")
    parser.add_argument("--model", help="folder or Hub id of a separator (default: the one that ships)")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"There is no folder {options.folder}.")
    songs = [path for path in sorted(options.folder.iterdir()) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not songs:
        parser.error(f"No song in {options.folder}: looked for {', '.join(sorted(AUDIO_SUFFIXES))}.")
    device = default_device()
    try:
        separate = pipeline("audio-source-separation", options.model, device=device, dtype=fitting_dtype(device))
        with tqdm(total=len(songs), desc="karaoke", unit="song") as bar:
            failed = sing_along(separate, songs, options.output_dir, bar)
    except EXPECTED_ERRORS as error:
        return fail("karaoke.py", error)
    except KeyboardInterrupt:
        return 130
    print(f"{len(songs) - failed} of {len(songs)} songs are in {options.output_dir}.")
    return 1 if failed else 0


def sing_along(separate, songs: list[Path], output_dir: Path, bar: tqdm) -> int:
    """Write all songs without their voices; returns how many could not be."""
    targets, opened, failed = set(), [], []

    def report(path: Path, error: Exception):
        failed.append(path)
        bar.write(f"{path}: error: {error}", file=sys.stderr)
        bar.update()

    def readers():
        """Songs as the separator asks for them: the next one while there is room in a batch."""
        for path in songs:
            target = output_dir / f"{path.stem}.flac"
            try:
                if target.exists() or str(target).casefold() in targets:
                    raise FileExistsError(f"{target} is there already: move it away, or choose another --output_dir.")
                reader = AudioReader(path)
                separate.preprocess(reader)  # raises here what would end the whole batch there
            except (ValueError, OSError) as error:
                report(path, error)
                continue
            targets.add(str(target).casefold())  # one file on disks that do not tell cases apart
            opened.append((path, target, reader))
            yield reader

    def show(done: int, total: int):
        bar.set_postfix_str(f"{opened[0][0].name} {done / total:.0%}")

    for stream in separate.stream_songs(readers(), two_stems="vocals", progress_callback=show):
        path, target, reader = opened[0]
        try:
            with AudioWriter(target, stream.sampling_rate, stream.num_channels) as writer:
                # As `mss-lm separate` does: a song with peaks beyond full scale becomes quieter as a whole.
                for block in limit_blocks(stream, "rescale", output_dir):
                    writer.write(block["no_vocals"])
        except (ValueError, OSError, RuntimeError) as error:
            report(path, error)
        else:
            if reader.losses:
                bar.write(f"{path}: warning: {damage_message(reader.name, reader.losses)}", file=sys.stderr)
            bar.update()
        opened.pop(0)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
