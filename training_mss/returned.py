"""What an accelerator run sends back, where little comes back: one archive in a few files.

    python -m training_mss.returned FOLDER --output_dir runs/accelerator

puts it together again: `separator/` and `codec/`, which `from_pretrained` loads, or `masks/best`, which `--init_from`
does, and logs. Weights are float16. What separator and codec have in common travels once.
"""

import argparse
import gzip
import json
import shutil
import sys
import tarfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .half_precision import halve, halved

ARCHIVE = "run.tar"  # its files are run.tar.0, run.tar.1, ...
SHARED = "shared_with_codec.json"  # names of the separator's weights that the codec has too
CODEC_PREFIX = "codec."
WEIGHTS = "model.safetensors"
MEBIBYTE = 2**20


class Parts:
    """A file to write to that is cut into pieces `NAME.0`, `NAME.1`, ... of at most `part_bytes`."""

    def __init__(self, path: Path, part_bytes: int):
        self.path, self.part_bytes, self.written = path, part_bytes, 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            number, used = divmod(self.written, self.part_bytes)
            piece = view[: self.part_bytes - used]
            with open(f"{self.path}.{number}", "ab") as file:
                file.write(piece)
            self.written += len(piece)
            view = view[len(piece) :]
        return len(data)


def send(work_dir: Path, output_dir: Path, part_mib: float, max_mib: float) -> list[str]:
    """Write all that a run has made so far to `output_dir`, in place of what an earlier call wrote there.

    Args:
        work_dir: folder of the run's stages.
        part_mib, max_mib: the most that a file, and all of them together, may have.

    Returns:
        Names of what was left out, for want of room.
    """
    staging, new = work_dir / "returned", work_dir / "returned_parts"
    for folder in (staging, new):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    left_out = []
    room = max_mib * MEBIBYTE - 64 * 1024  # headers and padding of the archive
    with tarfile.open(fileobj=Parts(new / ARCHIVE, int(part_mib * MEBIBYTE)), mode="w|") as archive:
        for name in gather(work_dir, staging):
            if name == "separator" and (staging / "codec").is_dir() and "codec" not in left_out:
                _leave_codec_out(staging / "separator", staging / "codec")
            files = [path for path in (staging / name).rglob("*") if path.is_file()]
            size = sum(path.stat().st_size + 1024 for path in files)
            if size > room:
                left_out.append(name)
                continue
            room -= size
            archive.add(staging / name, name)
    # Never old parts beside new ones: so many files may not come back.
    for path in output_dir.glob(f"{ARCHIVE}.*"):
        path.unlink()
    for path in new.iterdir():
        shutil.move(path, output_dir / path.name)
    new.rmdir()
    return left_out


def is_whole(folder: Path) -> bool:
    """Whether an export got to its end: the card is the last file that it writes."""
    return (folder / "README.md").is_file()


def gather(work_dir: Path, staging: Path) -> list[str]:
    """Small copies of what is there, in folders of `staging`; their names, the most wanted first."""
    names = ["logs"]
    _gather_logs(work_dir, staging / "logs")
    has_codec, has_separator = (is_whole(work_dir / name / "final") for name in ("codec", "separator"))
    if has_codec:
        halve(work_dir / "codec" / "final", staging / "codec")
        names.append("codec")
    if has_separator:
        halve(work_dir / "separator" / "final", staging / "separator")
        names.append("separator")
    else:
        for path in (work_dir / "masks" / "best").glob("*.safetensors"):
            (staging / "masks" / "best").mkdir(parents=True, exist_ok=True)
            save_file(halved(load_file(path)), staging / "masks" / "best" / path.name)
            names.append("masks")
    return names


def _gather_logs(work_dir: Path, target: Path) -> None:
    for pattern in ("*.log", "*.json", "*/log.jsonl", "*/final/README.md", "scores/*/*.md", "scores/*/*.json"):
        for path in work_dir.glob(pattern):
            copy = target / path.relative_to(work_dir)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.with_name(f"{copy.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


def _leave_codec_out(separator: Path, codec: Path) -> None:
    """Drop the decoding half of the run's own codec from a separator's weights, and write down which those were."""
    state, theirs = load_file(separator / WEIGHTS), load_file(codec / WEIGHTS)
    shared = [
        name
        for name, value in state.items()
        if name.startswith(CODEC_PREFIX)
        and (other := theirs.get(name.removeprefix(CODEC_PREFIX))) is not None
        and value.equal(other)
    ]
    kept = {name: value for name, value in state.items() if name not in set(shared)}
    save_file(kept, separator / WEIGHTS, metadata={"format": "pt"})
    (separator / SHARED).write_text(json.dumps(shared))


def receive(folder: Path, output_dir: Path) -> list[str]:
    """Unpack what `send` wrote; returns the names of what was in it.

    Raises:
        ValueError: there is no archive, or a piece of it is missing.
    """
    paths = sorted(folder.glob(f"{ARCHIVE}.*"), key=lambda path: int(path.suffix[1:]))
    if not paths or [path.suffix for path in paths] != [f".{number}" for number in range(len(paths))]:
        raise ValueError(f"Need {ARCHIVE}.0, {ARCHIVE}.1, ... in {folder}, got {[path.name for path in paths]}.")
    output_dir.mkdir(parents=True, exist_ok=True)
    whole = output_dir / ARCHIVE
    try:
        with open(whole, "wb") as file:
            for path in paths:
                file.write(path.read_bytes())
        with tarfile.open(whole) as archive:
            archive.extractall(output_dir, filter="data")
            names = sorted({member.name.split("/")[0] for member in archive.getmembers()})
    except tarfile.ReadError as error:
        raise ValueError(f"The archive in {folder} is not whole: {error}.") from error
    finally:
        whole.unlink(missing_ok=True)
    shared = output_dir / "separator" / SHARED
    if shared.is_file():
        codec = load_file(output_dir / "codec" / WEIGHTS)
        state = load_file(output_dir / "separator" / WEIGHTS)
        state |= {name: codec[name.removeprefix(CODEC_PREFIX)] for name in json.loads(shared.read_text())}
        save_file(state, output_dir / "separator" / WEIGHTS, metadata={"format": "pt"})
        shared.unlink()
    return names


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with run.tar.0, run.tar.1, ...")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        names = receive(options.folder, options.output_dir)
    except (ValueError, OSError, SafetensorError) as error:
        print(f"returned: {error}", file=sys.stderr)
        return 1
    print(f"{options.output_dir}: {' '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
