"""Pictures of sound: mel spectrograms of a song, its stems and every system's estimates, on one sheet."""

import os
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.audio_utils import hertz_to_mel

from processing_mss import log_mel_spectrogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

N_FFT = 4096
FRAMES_PER_SECOND = 50
RANGE_DB = 80.0  # from black to white
SILENCE_DB = -200.0  # what `mel_levels` gives for it
TICKS = {"500 Hz": 500, "2 kHz": 2000, "8 kHz": 8000}
CELL_INCHES = (3.1, 1.25)  # width, height
FIRST_ROWS = {"mixture": 0, "reference": 1}


def spectrogram_sheet(
    rows: dict[str, dict[str, torch.Tensor]],
    stems: list[str],
    sampling_rate: int,
    path: str | os.PathLike,
    title: str = "",
) -> None:
    """One PNG: a column for each stem, a row for the mixture, for the reference, and for every system.

    All cells share one scale of levels, that of the mixture and the reference, so that an estimate that is too loud or
    too quiet looks so. A cell without a waveform stays blank.

    Args:
        rows: system -> stem -> waveform `(C, T)` or `(T,)`, drawn in this order but for "mixture" and "reference",
            which come first. "mixture" holds one waveform, under "mixture", that is shown above every stem.
        sampling_rate: of all waveforms, in hertz (Hz).
    """
    names = sorted(rows, key=lambda name: FIRST_ROWS.get(name, len(FIRST_ROWS)))
    levels = {
        (name, stem): mel_levels(waveform, sampling_rate)
        for name in names
        for stem, waveform in rows[name].items()
        if stem in (*stems, "mixture")
    }
    if not levels:
        raise ValueError(f"There is nothing to draw: got {list(rows)}, none with any of {[*stems, 'mixture']}.")
    scale = [level for (name, _), level in levels.items() if name in FIRST_ROWS] or levels.values()
    loudest = max(float(level.max()) for level in scale)
    seconds = max(level.shape[1] for level in levels.values()) / FRAMES_PER_SECOND
    size = (CELL_INCHES[0] * len(stems) + 1.9, CELL_INCHES[1] * len(names) + 0.9)
    figure, cells = new_figure(len(names), len(stems), size)
    figure.suptitle(title)
    for name, line in zip(names, cells):
        label = textwrap.fill(name, 20)
        line[0].set_ylabel(label, fontsize=11, rotation=0, ha="right", va="center", labelpad=8)
        for stem, axes in zip(stems, line):
            level = levels.get((name, stem), levels.get((name, "mixture")))
            if level is None:
                _leave_blank(axes)
            else:
                image = draw_levels(axes, level, sampling_rate, loudest)
            axes.set_xlim(0, seconds)
            axes.tick_params(labelsize=8, labelleft=axes is line[0])
    for stem, axes in zip(stems, cells[0]):
        axes.set_title(stem, fontsize=11)
    for axes in cells[-1]:
        axes.set_xlabel("seconds", fontsize=9)
    colors = figure.colorbar(image, ax=cells, aspect=40, pad=0.01, fraction=0.02)
    colors.set_label("dB, loudest spot of mixture and reference = 0", fontsize=9)
    colors.ax.tick_params(labelsize=8)
    save_png(figure, path)


def mel_levels(waveform: torch.Tensor, sampling_rate: int) -> np.ndarray:
    """Levels in decibels (dB) of 120 mel bands, `(120, frames)`, 50 frames a second; channels are averaged."""
    hop = sampling_rate // FRAMES_PER_SECOND
    mono = waveform.float().mean(dim=0) if waveform.ndim == 2 else waveform.float()
    mono = torch.nn.functional.pad(mono, (0, max(-len(mono) % hop, -(-N_FFT // hop) * hop - len(mono))))
    return 20 / np.log(10) * log_mel_spectrogram(mono, sampling_rate, N_FFT, hop).T.numpy()


def draw_levels(axes: "Axes", levels: np.ndarray, sampling_rate: int, loudest: float) -> "AxesImage":
    """Show what `mel_levels` gives, from 80 dB below `loudest` up to it; the frequency axis runs from 0 to 1."""
    loudest = max(loudest, SILENCE_DB + RANGE_DB)  # silence is dark, also where there is nothing else
    extent = (0, levels.shape[1] / FRAMES_PER_SECOND, 0, 1)
    marks = {label: hertz for label, hertz in TICKS.items() if hertz < sampling_rate / 2}
    axes.set_facecolor("black")  # the dark end of magma, beyond the end of a shorter waveform
    axes.set_yticks(mel_heights(list(marks.values()), sampling_rate), list(marks))
    return axes.imshow(levels - loudest, "magma", vmin=-RANGE_DB, vmax=0, aspect="auto", origin="lower", extent=extent)


def mel_heights(hertz: list[float], sampling_rate: int) -> np.ndarray:
    """Where frequencies in hertz (Hz) are on the frequency axis of `draw_levels`."""
    mels = hertz_to_mel(np.array([*hertz, sampling_rate / 2], dtype=float), mel_scale="htk")
    return mels[:-1] / mels[-1]


def new_figure(num_rows: int, num_columns: int, inches: tuple[float, float]) -> tuple["Figure", np.ndarray]:
    """A figure, and its axes `(num_rows, num_columns)` with common ticks in x; no window, no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Drawing needs matplotlib (pip install "mss-lm[eval]").') from error
    figure = Figure(figsize=inches, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.05)  # inches
    return figure, figure.subplots(num_rows, num_columns, sharex=True, squeeze=False)


def save_png(figure: "Figure", path: str | os.PathLike) -> None:
    """The file appears whole or not at all; its folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".picture-") as folder:
        figure.savefig(Path(folder) / path.name, format="png", dpi=110)
        os.replace(Path(folder) / path.name, path)


def _leave_blank(axes: "Axes") -> None:
    axes.set(facecolor="white", yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False)
    axes.text(0.5, 0.5, "no estimate", color="#777777", fontsize=9, ha="center", va="center", transform=axes.transAxes)
