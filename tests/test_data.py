"""Manifests, preparers and crops."""

import itertools
import json
import signal
import time

import av
import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from data_mss.audio_files import probe_audio, read_piece
from data_mss.augmentation import StemAugmentation, random_level
from data_mss.dataset import StemDataset
from data_mss.effects import EQ_FREQUENCIES, biquad_response, equalise
from data_mss.manifest import ManifestError, ManifestWriter, Song, canonical_stem, read_manifest
from data_mss.musdb18 import VALIDATION_SONGS, prepare_musdb18
from data_mss.stem_folders import prepare_stem_folders
from data_mss.streaming import StreamingStemDataset, song_rows
from processing_mss import AudioReadError, read_audio
from tests.launching import fork_server
from tests.tiny import small_corpus

STEMS = ["vocals", "drums", "bass", "other"]


def sound(seed: int, seconds: float, rate: int, num_channels: int = 2) -> np.ndarray:
    """A low-passed noise `(channels, samples)`, so that resampling changes nothing but the grid."""
    noise = np.random.default_rng(seed).standard_normal((num_channels, round(seconds * rate)))
    smooth = scipy.signal.lfilter(*scipy.signal.butter(4, 4000 / (rate / 2)), noise)
    return (0.1 * smooth / smooth.std()).astype(np.float32)


def write_song(folder, seed: int = 0, seconds: float = 6.0, rate: int = 44100, suffix: str = "wav", stems=STEMS):
    folder.mkdir(parents=True)
    waveforms = {stem: sound(seed * 10 + i, seconds, rate) for i, stem in enumerate(stems)}
    for stem, waveform in waveforms.items():
        soundfile.write(folder / f"{stem}.{suffix}", waveform.T, rate)
    soundfile.write(folder / f"mixture.{suffix}", sum(waveforms.values()).T, rate)
    return waveforms


@pytest.fixture(scope="module")
def musdb(tmp_path_factory):
    """A folder laid out like MUSDB18-HQ, with one of the customary validation songs."""
    root = tmp_path_factory.mktemp("musdb18hq")
    for i, name in enumerate(["A Band - A Song", "Meaxic - Take A Step"]):
        write_song(root / "train" / name, seed=i)
    write_song(root / "test" / "Übung macht den Meister ♫ Lied", seed=2)
    return root


def test_musdb18_hq_becomes_a_manifest_that_is_never_rewritten(musdb, tmp_path):
    report = prepare_musdb18(musdb, tmp_path)
    assert (report.written, report.kept, report.failures) == (3, 0, {})
    songs = {song.id: song for song in read_manifest(tmp_path / "manifest.jsonl")}
    assert {song.split for song in songs.values()} == {"train", "validation", "test"}
    song = songs["train/A Band - A Song"]
    assert (song.sampling_rate, song.duration, sorted(song.stems)) == (44100, 6.0, sorted(STEMS))
    assert song.paths("bass") == [musdb / "train" / "A Band - A Song" / "bass.wav"]
    before = (tmp_path / "manifest.jsonl").stat()
    assert prepare_musdb18(musdb, tmp_path).kept == 3
    assert (tmp_path / "manifest.jsonl").stat().st_mtime_ns == before.st_mtime_ns
    assert len(VALIDATION_SONGS) == 14


def test_stem_mp4_is_unpacked(song_path, tmp_path):
    folder = tmp_path / "musdb18" / "test"
    folder.mkdir(parents=True)
    (folder / song_path.name).symlink_to(song_path)
    (folder / "broken.stem.mp4").write_bytes(song_path.read_bytes()[:100000])
    report = prepare_musdb18(tmp_path / "musdb18", tmp_path / "out")
    assert report.written == 1 and list(report.failures) == ["test/broken"]
    (song,) = read_manifest(tmp_path / "out")
    stems = [read_audio(song.paths(stem)[0])[0] for stem in STEMS]
    mixture = read_audio(song.folder / song.mixture)[0]
    # The mixture was mastered after mixing: its stems add up to it 15 dB below, not exactly.
    assert np.square(sum(stems) - mixture).mean() < 0.05 * np.square(mixture).mean()
    spectra = [np.square(np.abs(np.fft.rfft(stem[0]))) for stem in stems]
    vocals, drums, bass, other = (spectrum[:1500].sum() / spectrum.sum() for spectrum in spectra)  # below 250 Hz
    assert vocals < other < min(drums, bass)  # the streams are what they are called


def test_stem_folders_with_all_that_folders_hold(tmp_path):
    root = tmp_path / "my songs"
    write_song(root / "train" / "Señor Müller" / "take 2", seconds=5.0, rate=22050, suffix="flac")
    write_song(root / "valid" / "96k", seed=1, seconds=4.5, rate=96000)
    guitar_song = root / "plain"
    write_song(guitar_song, seed=2, stems=["Lead Vocals", "guitar", "piano"])
    soundfile.write(guitar_song / "kick.wav", sound(5, 6.0, 44100, num_channels=1).T, 44100)
    write_song(root / "summed twice", seed=6, stems=[*STEMS, "no_vocals"])
    write_song(root / "summed once", seed=7, stems=["vocals", "rest"])
    (guitar_song / "notes.txt").write_text("not audio")
    broken = root / "broken"
    write_song(broken, seed=3)
    (broken / "bass.wav").write_bytes(b"")
    truncated = root / "truncated"
    write_song(truncated, seed=4, suffix="flac")
    whole = (truncated / "drums.flac").read_bytes()
    (truncated / "drums.flac").write_bytes(whole[: len(whole) // 2])
    nan = root / "nan"
    write_song(nan, seed=5)
    soundfile.write(nan / "other.wav", np.full((1000, 1), np.nan), 44100, subtype="FLOAT")

    with pytest.raises(ValueError, match=r"none is called \['plane'\]"):
        prepare_stem_folders(root, tmp_path / "out", validation_songs=("plane",))
    report = prepare_stem_folders(root, tmp_path / "out", validation_songs=("plain",), licence="CC0-1.0")
    assert report.written == 5 and sorted(report.failures) == ["broken", "nan", "truncated"]
    songs = {song.id: song for song in read_manifest(tmp_path / "out")}
    assert songs["train/Señor Müller/take 2"].split == "train"
    assert songs["train/Señor Müller/take 2"].sampling_rate == 22050
    assert songs["valid/96k"].split == songs["plain"].split == "validation"
    stems = {stem: [path.name for path in songs["plain"].paths(stem)] for stem in STEMS}
    assert stems == {
        "vocals": ["Lead Vocals.wav"],
        "drums": ["kick.wav"],
        "bass": [],
        "other": ["guitar.wav", "piano.wav"],
    }
    assert list(songs["summed twice"].stems) == sorted(STEMS)
    assert list(songs["summed once"].stems) == ["drums+bass+other", "vocals"]
    # Every rate, mono or stereo, gives crops; the missing bass is silence.
    crop = StemDataset(tmp_path / "out", split="validation", source_weights={"stems": 1.0})[0]
    assert crop["stems"].shape == (4, 192000) and crop["stems"].isfinite().all()
    with pytest.raises(ValueError, match=r"has 'plain', made with .*'validation'}, not with .*'train'}: choose"):
        prepare_stem_folders(root, tmp_path / "out", licence="CC0-1.0")
    with pytest.raises(ValueError, match="No stems below"):
        prepare_stem_folders(tmp_path / "out", tmp_path / "none")


def test_a_manifest_survives_a_kill_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "manifest.jsonl"
    writer = ManifestWriter(path)
    for name in ("one\u2028line", "two"):  # a line separator that is none in JSON lines
        stems = {"vocals": [str(tmp_path / "audio" / f"{name}.wav")]}
        writer.add(Song(name, "train", stems, 1.0, 48000, "test"))
    assert json.loads(path.read_text().split("\n")[0])["stems"] == {"vocals": ["audio/one\u2028line.wav"]}  # relative
    content = path.read_bytes()
    path.write_bytes(content + b'{"id": "thr')
    writer = ManifestWriter(path)
    assert path.read_bytes() == content and "two" in writer and "three" not in writer
    path.write_bytes(content[:-1])  # whole but for its end, as an editor may leave it
    assert "two" in ManifestWriter(path) and path.read_bytes() == content
    path.write_bytes(mistyped := content[:-1].replace(b'"train"', b'"trian"'))  # is nobody's to drop
    with pytest.raises(ManifestError, match="trian"):
        ManifestWriter(path)
    assert path.read_bytes().rstrip() == mistyped
    with pytest.raises(ValueError, match="already"):
        writer.add(Song("two", "train", {}, 1.0, 48000, "test"))
    with pytest.raises(ManifestError, match="No manifest"):
        read_manifest(tmp_path / "none.jsonl")


SONG = {
    "id": "a/b",
    "split": "train",
    "stems": {"bass": ["b.wav"]},
    "duration": 2,
    "sampling_rate": 8000,
    "source": "x",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 5}, "`id` must be a string, got 5"),
        ({"id": "../x"}, "'../x' names no folder of its own"),
        ({"id": "a/../../x"}, "names no folder of its own"),
        ({"id": "/x"}, "names no folder of its own"),
        ({"id": ""}, "names no folder of its own"),
        ({"id": "."}, "names no folder of its own"),
        ({"id": "./a"}, "names no folder of its own"),
        ({"id": "a//b"}, "names no folder of its own"),
        ({"stems": "vocals"}, "`stems` must be lists of files by stem"),
        ({"stems": {"vocals": "v.wav"}}, "`stems.vocals` must be a list of files, .* got 'v.wav'"),
        ({"stems": {"vocals": [1]}}, r"`stems.vocals` must be a list of files, .* got \[1\]"),
        ({"stems": {"../vocals": []}}, "without slashes, got '../vocals'"),
        ({"duration": float("nan")}, "`duration` must be a positive number of seconds, got nan"),
        ({"duration": float("inf")}, "`duration` .* got inf"),
        ({"duration": -1}, "`duration` .* got -1"),
        ({"duration": "2"}, "`duration` .* got '2'"),
        ({"duration": True}, "`duration` .* got True"),
        ({"sampling_rate": 8000.5}, "`sampling_rate` must be a positive whole number"),
        ({"sampling_rate": True}, "`sampling_rate` .* got True"),
        ({"licence": None}, "`licence` must be a string"),
        ({"mixture": 3}, "`mixture` must be a string, or left out"),
        ({"confidence": 1.5}, "`confidence` must be a number from 0 to 1"),
        ({"folder": "x"}, r"no fields \['folder'\]"),
    ],
)
def test_a_line_that_is_no_song_is_named(tmp_path, change, message):
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(SONG) + "\n\n" + json.dumps({**SONG, **change}) + "\n")
    with pytest.raises(ManifestError, match=rf"manifest.jsonl, line 3: .*{message}"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", r"must be a JSON object with the fields of a song, got \[1\]"),
        (b"7", "must be a JSON object"),
        (b'{"id": "x"}', r"needs the fields \['split', 'stems', 'duration', 'sampling_rate', 'source'\]"),
        (b'{"id": "x"', "It is no JSON: .* at character 11"),
        (b'"\xff"', "utf-8"),
    ],
)
def test_a_line_of_another_kind_is_named(tmp_path, line, message):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(line)
    with pytest.raises(ManifestError, match=rf"manifest.jsonl, line 1: .*{message}"):
        read_manifest(path)


def test_a_killed_preparation_goes_on_where_it_stopped(tmp_path):
    """SIGKILL in the middle; the manifest ends up whole, with every song once."""
    root = tmp_path / "songs"
    for i in range(30):
        write_song(root / f"song {i:02}", seed=i, seconds=1.0)
    manifest = tmp_path / "out" / "manifest.jsonl"
    process = fork_server().Process(target=prepare_stem_folders, args=(root, tmp_path / "out"))
    process.start()
    while process.is_alive():
        if manifest.exists() and manifest.read_bytes().count(b"\n") >= 5:
            process.kill()
            process.join()
        time.sleep(0.001)
    assert process.exitcode == -signal.SIGKILL
    assert manifest.read_bytes().count(b"\n") < 30
    assert not prepare_stem_folders(root, tmp_path / "out").failures
    ids = [song.id for song in read_manifest(manifest)]
    assert sorted(ids) == [f"song {i:02}" for i in range(30)]


@pytest.mark.parametrize(("rate", "suffix"), [(48000, "wav"), (44100, "wav"), (22050, "flac"), (96000, "wav")])
def test_a_piece_equals_the_same_piece_of_the_whole_file(tmp_path, rate, suffix):
    waveform = sound(0, 5.0, rate)
    path = tmp_path / f"a file with spaces.{suffix}"
    soundfile.write(path, waveform.T, rate, subtype="PCM_24")
    time_s = np.arange(240000) / 48000
    expected = np.interp(time_s, np.arange(waveform.shape[1]) / rate, waveform.mean(axis=0))
    for start_s in (0.0, 1.0, 2.5):
        piece = read_piece(path, start_s, 48000, 48000, tmp_path).numpy()
        window = expected[round(start_s * 48000) :][:48000]
        # Linear interpolation is a coarse reference for 22.05 kHz; a shift by one sample would be far outside.
        assert np.abs(piece - window)[100:-100].max() < (0.08 if rate == 22050 else 0.03)
    soundfile.write(path.with_name("nan.wav"), np.where(np.arange(100000) == 60000, np.nan, 0), rate, subtype="FLOAT")
    with pytest.raises(AudioReadError, match=r"nan\.wav: it holds NaN"):
        read_piece(path.with_name("nan.wav"), 0.0, 240000, 48000, tmp_path)
    with pytest.raises(AudioReadError, match=r"none\.wav: there is no such file"):
        read_piece(path.with_name("none.wav"), 0.0, 240000, 48000, tmp_path)
    beyond = read_piece(path, 4.5, 48000, 48000, tmp_path)
    assert beyond.shape == (48000,) and (beyond[25000:] == 0).all() and beyond[:23000].abs().max() > 0.05
    assert probe_audio(path).duration == 5.0


def test_formats_that_do_not_seek_are_packed_once(tmp_path):
    waveform = sound(0, 5.0, 44100)
    path, cache = tmp_path / "song.mp3", tmp_path / "cache"
    soundfile.write(path, waveform.T, 44100)
    piece = read_piece(path, 1.0, 48000, 48000, cache)
    (packed,) = cache.iterdir()
    assert packed.suffix == ".npy" and packed.stat().st_size < 5.2 * 48000 * 2
    decoded, rate = read_audio(path)
    expected = np.interp(np.arange(48000) / 48000 + 1.0, np.arange(decoded.shape[1]) / rate, decoded.mean(axis=0))
    assert np.abs(piece.numpy() - expected).max() < 0.03
    read_piece(path, 2.0, 48000, 48000, cache)
    assert [packed] == list(cache.iterdir())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for i in range(3):
        write_song(root / f"song{i}", seed=i, seconds=8.0, suffix="flac")
    (root / "song2" / "vocals.flac").unlink()
    prepare_stem_folders(root, root / "manifest")
    return root / "manifest"


def test_crops_depend_on_seed_epoch_and_index_alone(corpus):
    dataset = StemDataset(corpus, crop_s=1.0, remix_probability=0.5, epoch_size=12, seed=3)
    epochs = {}
    for epoch, num_workers in itertools.product((0, 1), (0, 1, 3)):
        dataset.set_epoch(epoch)
        crops = torch.cat([batch["stems"] for batch in DataLoader(dataset, batch_size=2, num_workers=num_workers)])
        assert crops.shape == (12, 4, 48000)
        assert torch.equal(crops, epochs.setdefault(epoch, crops))
    assert not torch.equal(epochs[0], epochs[1])
    # Workers that live longer than an epoch draw other crops in the next one.
    loader = DataLoader(dataset, batch_size=12, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert torch.equal(next(iter(loader))["stems"], epochs[epoch])


def test_crops_add_up_and_come_from_where_they_say(corpus):
    dataset = StemDataset(corpus, remix_probability=0.5, epoch_size=40)
    crops = [dataset[i] for i in range(40)]
    for crop in crops:
        assert (crop["stems"].sum(dim=0) - crop["mixture"]).abs().max() <= 1e-6
    remixed = [crop for crop in crops if len(set(crop["song_ids"])) > 1]
    assert 8 < len(remixed) < 32
    assert all("song2" not in crop["song_ids"][0] for crop in remixed)  # it has no vocals
    silent = [crop for crop in crops if crop["stems"][0].abs().max() == 0]
    assert silent and all(crop["song_ids"][0] == "song2" for crop in silent)
    two = StemDataset(corpus, stems=["vocals", "other"], epoch_size=40)[0]  # drums and bass count as other
    four = StemDataset(corpus, epoch_size=40)[0]
    torch.testing.assert_close(two["mixture"], four["mixture"], atol=1e-6, rtol=0)
    torch.testing.assert_close(two["stems"][0], four["stems"][0])


def test_silent_crops_are_drawn_again(tmp_path):
    folder = tmp_path / "song"
    folder.mkdir()
    half = np.zeros((44100 * 40, 1), dtype=np.float32)
    half[: 44100 * 10] = sound(0, 10.0, 44100, 1).T
    soundfile.write(folder / "vocals.wav", half, 44100)
    prepare_stem_folders(tmp_path, tmp_path / "out")
    dataset = StemDataset(tmp_path / "out", epoch_size=20)
    assert min(dataset[i]["mixture"].square().mean() for i in range(20)) > 0
    soundfile.write(folder / "vocals.wav", half * 0, 44100)
    assert dataset[0]["mixture"].abs().max() == 0  # a silent song ends the drawing


def test_sources_are_drawn_by_weight_and_confidence(tmp_path, corpus):
    write_song(tmp_path / "songs" / "other one", seed=9)
    prepare_stem_folders(tmp_path / "songs", tmp_path / "second", source="second")
    songs = read_manifest(corpus) + read_manifest(tmp_path / "second")
    dataset = StemDataset(songs, crop_s=1.0, source_weights={"stems": 1.0, "second": 3.0}, epoch_size=80)
    second = sum(dataset[i]["song_ids"][0] == "other one" for i in range(80))
    assert 48 <= second <= 72  # 60 expected
    for song in songs:
        song.confidence = 0.5 if song.source == "second" else None
    assert len(StemDataset(songs, min_confidence=0.9).songs) == 3
    with pytest.raises(ValueError, match="third"):
        StemDataset(songs, source_weights={"third": 1.0})
    with pytest.raises(ValueError, match="from 0 on"):
        StemDataset(songs, source_weights={"stems": 1.0, "second": -1.0})
    with pytest.raises(ValueError, match="No song of split 'test'"):
        StemDataset(songs, split="test")


def test_streaming_through_datasets(corpus, tmp_path):
    datasets = pytest.importorskip("datasets")
    songs = read_manifest(corpus)
    rows = datasets.Dataset.from_generator(
        song_rows, gen_kwargs={"songs": songs, "stems": tuple(STEMS)}, cache_dir=str(tmp_path / "hf")
    )
    rows.to_parquet(tmp_path / "corpus.parquet")
    stream = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "corpus.parquet"), split="train", streaming=True
    )
    dataset = StreamingStemDataset(stream, crops_per_song=4, seed=1)
    crops = list(dataset)
    assert len(crops) == 12
    for crop in crops:
        assert crop["stems"].shape == (4, 192000)
        assert (crop["stems"].sum(dim=0) - crop["mixture"]).abs().max() <= 1e-6
    song = next(song for song in songs if song.id == crops[0]["song_ids"][0])
    whole, _ = read_audio(song.paths("drums")[0])
    level = np.sqrt(np.square(whole.mean(axis=0)).mean())
    assert crops[0]["stems"][1].square().mean().sqrt().item() == pytest.approx(level, rel=0.1)
    assert all(torch.equal(one["stems"], other["stems"]) for one, other in zip(crops, dataset))
    dataset.set_epoch(1)
    assert not torch.equal(next(iter(dataset))["stems"], crops[0]["stems"])
    in_order = StreamingStemDataset(stream, crops_per_song=4, buffer_size=1)
    loader = DataLoader(in_order, batch_size=2, num_workers=1, persistent_workers=True)
    first = [batch["stems"] for batch in loader]
    in_order.set_epoch(1)
    second = [batch["stems"] for batch in loader]
    assert len(first) == len(second) == 6 and not torch.equal(first[0], second[0])


def test_packed_songs_are_streamed_as_they_are(tmp_path):
    songs = read_manifest(small_corpus(tmp_path, songs=1, seconds=0.5))
    for song, row in zip(songs, song_rows(songs, STEMS), strict=True):
        streamed, rate = read_audio(row["drums"])
        packed = np.load(song.paths("drums")[0]) / 32768
        assert rate == 48000 and np.abs(streamed[0] - packed).max() < 2**-22


def test_equaliser_is_the_biquads_run_sample_by_sample():
    waveform = torch.randn(2, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gains_db = torch.tensor([6.0, -6.0, 3.0, 0.0, -3.0, 5.0, -4.0], dtype=torch.float64).expand(2, 7)
    expected = waveform.numpy()
    impulse = np.zeros(2**15)
    impulse[0] = 1.0
    turn = torch.linspace(0, np.pi, 2**14 + 1, dtype=torch.float64)
    for band, frequency in enumerate(EQ_FREQUENCIES):
        kind = "low_shelf" if band == 0 else "high_shelf" if band == 6 else "peak"
        b, a = cookbook(kind, frequency, gains_db[0, band].item())
        expected = scipy.signal.lfilter(b, a, expected)
        response = biquad_response(kind, frequency, gains_db[0, band], turn, 48000)
        np.testing.assert_allclose(response.numpy(), scipy.signal.freqz(b, a, turn.numpy())[1], rtol=1e-9)
    # 1e-3: the tail of the lowest filter beyond the padding (85 ms).
    np.testing.assert_allclose(equalise(waveform, gains_db, 48000).numpy(), expected, atol=1e-3)
    # A crop of 4 s has FFT bins every 0.24 Hz, between which the response is interpolated.
    long = torch.nn.functional.pad(waveform, (0, 192000 - 4000))
    np.testing.assert_allclose(equalise(long, gains_db, 48000)[:, :4000].numpy(), expected, atol=1e-3)


def cookbook(kind: str, frequency: float, gain_db: float, quality: float = 0.9):
    """Coefficients as the cookbook prints them, written out apart from the code under test."""
    big_a, w0 = 10 ** (gain_db / 40), 2 * np.pi * frequency / 48000
    cos, alpha = np.cos(w0), np.sin(w0) / (2 * quality)
    root = 2 * np.sqrt(big_a) * alpha
    if kind == "peak":
        return [1 + alpha * big_a, -2 * cos, 1 - alpha * big_a], [1 + alpha / big_a, -2 * cos, 1 - alpha / big_a]
    if kind == "low_shelf":
        b = [
            big_a * ((big_a + 1) - (big_a - 1) * cos + root),
            2 * big_a * ((big_a - 1) - (big_a + 1) * cos),
            big_a * ((big_a + 1) - (big_a - 1) * cos - root),
        ]
        a = [
            (big_a + 1) + (big_a - 1) * cos + root,
            -2 * ((big_a - 1) + (big_a + 1) * cos),
            (big_a + 1) + (big_a - 1) * cos - root,
        ]
        return b, a
    b = [
        big_a * ((big_a + 1) + (big_a - 1) * cos + root),
        -2 * big_a * ((big_a - 1) + (big_a + 1) * cos),
        big_a * ((big_a + 1) + (big_a - 1) * cos - root),
    ]
    a = [
        (big_a + 1) - (big_a - 1) * cos + root,
        2 * ((big_a - 1) - (big_a + 1) * cos),
        (big_a + 1) - (big_a - 1) * cos - root,
    ]
    return b, a


def test_augmentation_has_the_papers_ranges():
    generator = torch.Generator().manual_seed(0)
    stems = torch.ones(200, 4, 64)
    plain = StemAugmentation(eq_probability=0.0)
    factors = plain(stems, generator)
    assert (factors == factors[..., :1]).all()
    factors = factors[..., 0]
    assert 0.4999 <= factors.abs().min() < 0.51 and 1.49 < factors.abs().max() <= 1.5001
    assert 0.06 < (factors < 0).float().mean() < 0.14  # 10 %
    noise = torch.randn(16, 4, 4096, generator=generator)
    augmented = StemAugmentation(gain_range=(1.0, 1.0), polarity_probability=0.0, eq_probability=1.0)(noise, generator)
    ratio = 20 * torch.log10(torch.fft.rfft(augmented).abs().mean(dim=0) / torch.fft.rfft(noise).abs().mean(dim=0))
    assert ratio.abs().max() < 8  # seven bands of at most 6 dB
    assert torch.equal(plain(stems, torch.Generator().manual_seed(1)), plain(stems, torch.Generator().manual_seed(1)))


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 10))
@settings(max_examples=30)
def test_random_level_scales_all_stems_alike(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    stems = scale * torch.randn(8, 4, 1000, generator=generator)
    stems[0] = 0
    levelled = random_level(stems, generator)
    rms = levelled.sum(dim=1).square().mean(dim=-1).sqrt()
    assert rms[0] == 0 and (rms[1:] > 0.00299).all() and (rms[1:] < 0.3001).all()
    factor = rms[1:] / stems[1:].sum(dim=1).square().mean(dim=-1).sqrt()
    # 1e-5: the factor is measured from float32 sums.
    torch.testing.assert_close(levelled[1:], stems[1:] * factor[:, None, None], rtol=1e-5, atol=1e-7)


def test_names_of_stems():
    assert [canonical_stem(name) for name in ("Vocals", "lead vocals", "Drum-Kit", "bass 2", "Piano", "mixdown")] == [
        "vocals",
        "vocals",
        None,
        "bass",
        "other",
        None,
    ]
    with pytest.raises(AudioReadError, match="no such file"):
        probe_audio("none.wav")


def test_m4a_is_packed(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(sound(0, 5.0, 44100), format="fltp", layout="stereo")
        frame.rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert 5.0 <= probe_audio(path).duration < 5.1
    assert read_piece(path, 1.0, 48000, 48000, tmp_path / "cache").abs().max() > 0.05
