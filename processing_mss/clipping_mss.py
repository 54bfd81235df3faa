"""What happens to samples beyond full scale, which integer formats cannot hold."""

import os
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from .options_mss import CLIP_MODES

HEADROOM = 1.01  # as in demucs: a peak beyond 1 comes down to 0.99


def limit_blocks(
    blocks: Iterable[dict[str, np.ndarray]], mode: str, folder: str | os.PathLike | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Blocks of the stems of a song, brought into full scale.

    Args:
        blocks: stems `(C, n)` float32 by name, of the same shape.
        mode: "none" changes nothing. "clamp" cuts at -1 and 1. "rescale" makes the whole song quieter if a peak is
            beyond 1, by one factor for all stems, so that their balance and sum stay (demucs, whose modes these are,
            takes a factor for each stem). It has to hear the whole song first: until then it lies in a temporary file.
        folder: of that file, deleted in any case; the system's folder for temporary files if not given.

    Raises:
        ValueError: another mode.
    """
    if mode not in CLIP_MODES:
        raise ValueError(f"`clip_mode` must be among {list(CLIP_MODES)}, got {mode!r}.")
    if mode == "none":
        yield from blocks
    elif mode == "clamp":
        for block in blocks:
            yield {label: samples.clip(-1, 1) for label, samples in block.items()}
    else:
        yield from _rescaled(blocks, folder)


def _rescaled(blocks, folder) -> Iterator[dict[str, np.ndarray]]:
    peak, shapes, labels = 0.0, [], []
    with tempfile.TemporaryFile(dir=folder) as file:
        for block in blocks:
            labels = list(block)
            stacked = np.stack(list(block.values())).astype(np.float32)
            peak = max(peak, float(np.abs(stacked).max(initial=0)))
            shapes.append(stacked.shape)
            file.write(stacked.tobytes())
        file.seek(0)
        factor = np.float32(1 / (HEADROOM * peak) if peak > 1 else 1)
        for shape in shapes:
            samples = np.frombuffer(file.read(4 * int(np.prod(shape))), dtype=np.float32).reshape(shape)
            yield dict(zip(labels, samples * factor))
