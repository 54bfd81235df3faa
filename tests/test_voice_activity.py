"""Where somebody sings: segments from a speech detector and from levels."""

import itertools
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_mss.labelling.voice_activity import (
    Segment,
    drop_short,
    energy_segments,
    find_segments,
    merge_segments,
    silero_segments,
)

spans = st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 20)).map(lambda span: Segment(span[0], sum(span))))


def piece_of(shared_dir: Path, name: str, start_s: int, seconds: int) -> torch.Tensor:
    """Of a shared CC0 stem, `(2, T)` at 48 kHz, without decoding the rest."""
    path = shared_dir / "data" / "everything_is_free" / name
    samples, _ = soundfile.read(path, 48000 * seconds, 48000 * start_s, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T)


@given(spans, st.floats(0, 5))
def test_merging_covers_the_same_leaves_gaps_and_is_done_after_one_pass(segments, max_gap_s):
    merged = merge_segments(segments, max_gap_s)
    assert all(any(big.start <= small.start and small.end <= big.end for big in merged) for small in segments)
    assert all(after.start - before.end > max_gap_s for before, after in itertools.pairwise(merged))
    assert {segment.start for segment in merged} <= {segment.start for segment in segments}
    assert {segment.end for segment in merged} <= {segment.end for segment in segments}
    assert merge_segments(merged, max_gap_s) == merged
    assert merge_segments(segments[::-1], max_gap_s) == merged


@given(spans, st.floats(0.1, 5))
def test_dropping_keeps_exactly_the_long_ones_in_order(segments, min_s):
    kept = drop_short(segments, min_s)
    assert all(segment.duration >= min_s for segment in kept)
    assert kept == [segment for segment in segments if segment in kept]
    assert len(kept) + sum(segment.duration < min_s for segment in segments) == len(segments)


def test_energy_finds_loud_vocals_at_any_level_and_leaves_out_leakage_and_silence():
    rate, noise = 1000, torch.randn(2, 10000, generator=torch.Generator().manual_seed(0))
    vocals, rest = 0.01 * noise, 0.3 * noise.flip(1)  # leakage 30 dB below the rest
    vocals[:, 3000:6000] *= 20
    for level in (1.0, 1e-3):
        assert energy_segments(level * vocals, level * (vocals + rest), rate) == [Segment(3.0, 6.0)]
    assert energy_segments(0 * vocals, 0 * vocals, rate) == []
    with pytest.raises(ValueError, match="same shape"):
        energy_segments(vocals, rest[:, 1:], rate)


@pytest.mark.parametrize("seconds", [0.01, 2.0, 3.03])
def test_all_is_one_segment_of_the_whole_song(seconds):
    mixture = torch.ones(1, round(seconds * 1000))
    expected = [Segment(0.0, seconds)] if seconds >= 2 else []
    assert find_segments("all", mixture, mixture, 1000) == expected
    with pytest.raises(ValueError, match="activity"):
        find_segments("loud", mixture, mixture, 1000)


def test_energy_finds_more_of_real_singing_than_silero(shared_dir):
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    stems = []
    for name in ("vocals", "other"):
        stems.append(piece_of(shared_dir, f"3.Sodium/{name}.opus", start_s=230, seconds=30))
    rate, num_threads = 48000, torch.get_num_threads()
    torch.set_num_threads(2)
    found = {"silero": silero_segments(stems[0], rate), "energy": energy_segments(stems[0], sum(stems), rate)}
    assert torch.get_num_threads() == 2  # the package would set it to 1
    torch.set_num_threads(num_threads)
    seconds = {name: sum(segment.duration for segment in segments) for name, segments in found.items()}
    assert 0 < seconds["silero"] < seconds["energy"] <= 30
    assert silero_segments(torch.zeros(2, rate), rate) == []
