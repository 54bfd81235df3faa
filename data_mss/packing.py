"""Manifests of any audio -> packed songs: one int16 array per stem, read by training without audio libraries."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from .audio_files import PACKED_SUFFIX, add_up, read_mono, write_packed
from .manifest import STEMS, ManifestWriter, Song, read_manifest, stems_of
from .preparing import PrepareReport, copied_from, copy_of, prepare_songs, require_different_ids

PEAK = 32767 / 32768  # the largest sample that int16 holds


def prepare_packed(
    manifests: Iterable[str | os.PathLike],
    output_dir: str | os.PathLike,
    sampling_rate: int = 48000,
    stems: Iterable[str] = STEMS,
) -> PrepareReport:
    """Write `output_dir/<song>/<stem>.npy`, mono int16, and `output_dir/manifest.jsonl`.

    The files of a stem are summed and then rounded. Where a stem would be cut at full scale, all stems of its song are
    scaled by one factor, so that none is: levels within a song stay true. Id, split, source, licence and confidence
    are kept; the mixture is not packed, since training sums the stems. Packed songs may be packed again.

    Args:
        manifests: files, or folders of them.
        sampling_rate: of the packed songs, in hertz (Hz).
        stems: those to be packed. Others count as "other" if that is among them and are left out if not. Sums of
            several of them stay sums.

    Raises:
        ValueError: two songs of one id, no stem, or a folder of songs that were packed from others or otherwise.
    """
    output_dir, stems = Path(output_dir), list(stems)
    if sampling_rate <= 0 or not stems:
        raise ValueError(f"Need a positive sampling rate and a stem at least, got {sampling_rate} and {stems}.")
    songs = [song for manifest in manifests for song in read_manifest(manifest)]
    require_different_ids(songs)
    if any(song.folder.resolve() == output_dir.resolve() for song in songs):
        raise ValueError(f"The songs and the output must lie in different folders, both are {output_dir}.")
    wanted = {song.id: copied_from(song, sampling_rate=sampling_rate, stems=stems) for song in songs}
    jobs = ((song.id, lambda s=song: _pack(s, output_dir / s.id, sampling_rate, stems)) for song in songs)
    return prepare_songs(ManifestWriter(output_dir / "manifest.jsonl"), jobs, "pack", wanted)


def _pack(song: Song, folder: Path, sampling_rate: int, stems: list[str]) -> Song:
    files: dict[str, list[torch.Tensor]] = {}
    for name in song.stems:
        packed_name = "+".join(stems_of(name, stems))
        for path in song.paths(name) if packed_name else []:
            files.setdefault(packed_name, []).append(read_mono(path, sampling_rate, song.sampling_rate))
    if not files:
        raise ValueError(f"it has none of the stems {stems}, only {list(song.stems)}.")
    waveforms = {name: add_up(parts) for name, parts in files.items()}
    factor = min(1.0, PEAK / max(1e-8, *(waveform.abs().max().item() for waveform in waveforms.values())))
    written = {}
    for stem, waveform in waveforms.items():
        packed = (waveform * factor * 32768).round().clamp(-32768, 32767)
        path = folder / f"{stem}{PACKED_SUFFIX}"
        write_packed(path, packed.to(torch.int16).numpy())
        written[stem] = [str(path)]
    return copy_of(song, written, max(map(len, waveforms.values())) / sampling_rate, sampling_rate)
