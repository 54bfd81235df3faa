"""Packed songs, crops from the device's memory, and the bank of encoded crops."""

import shutil
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commands_mss.main import main
from data_mss.audio_files import open_packed, read_piece, write_packed
from data_mss.augmentation import AugmentationDraw, StemAugmentation, draw_levels, set_level
from data_mss.dataset import Place, StemDataset
from data_mss.device_corpus import DeviceCorpus
from data_mss.manifest import ManifestWriter, Song, read_manifest
from data_mss.packing import prepare_packed
from data_mss.token_bank import TokenBank
from processing_mss import AudioReadError

STEMS = ["vocals", "drums", "bass", "other"]
RATE = 8000
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def write_song(writer: ManifestWriter, song_id: str, seed: int, seconds: float = 3.0, scale: float = 0.1, **files: int):
    """A song of noise in wavs at 8 kHz; `files` says how many of each stem."""
    rng = np.random.default_rng(seed)
    stems = {}
    for stem, count in files.items():
        stems[stem] = [str(writer.path.parent / f"{song_id}_{stem}{number}.wav") for number in range(count)]
        for path in stems[stem]:
            samples = scale * rng.uniform(-1, 1, (round(seconds * RATE), 2))
            soundfile.write(path, samples, RATE, subtype="FLOAT")
    writer.add(Song(song_id, "train", stems, seconds, RATE, "noise", licence="CC0-1.0", confidence=0.9))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three songs: plain; two guitars and no vocals; loud, and shorter than a crop."""
    writer = ManifestWriter(tmp_path_factory.mktemp("songs") / "manifest.jsonl")
    write_song(writer, "plain", 0, seconds=5.0, vocals=1, drums=1, bass=1, other=1)
    write_song(writer, "guitars", 1, drums=2, bass=1, guitar=2)
    write_song(writer, "loud", 2, seconds=0.7, scale=0.9, vocals=4, other=1)
    return writer.path


@pytest.fixture(scope="module")
def packed(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    assert prepare_packed([manifest], folder, sampling_rate=RATE).written == 3
    return folder


def make_dataset(folder, **options) -> StemDataset:
    options = {"crop_s": 1.0, "sampling_rate": RATE, "remix_probability": 0.5, "epoch_size": 40, **options}
    return StemDataset(folder, **options)


def test_packed_songs_hold_what_their_files_hold(manifest, packed):
    songs = {song.id: song for song in read_manifest(packed)}
    plain = songs["plain"]
    assert (plain.source, plain.licence, plain.confidence, plain.duration) == ("noise", "CC0-1.0", 0.9, 5.0)
    assert plain.stems["bass"] == ["plain/bass.npy"] and set(songs["guitars"].stems) == {"drums", "bass", "other"}
    assert not [path for path in packed.rglob("*") if path.is_file() and path.suffix not in (".npy", ".jsonl")]
    # The same crops as from the files, up to rounding; the loud song is scaled down as a whole.
    for song_id, start_s in (("plain", 2.345), ("guitars", 1.0), ("loud", 0.0)):
        place = [Place([song.id for song in read_manifest(manifest)].index(song_id), start_s)] * 4
        crop = make_dataset(packed).read(place)
        expected = make_dataset(manifest).read(place)
        factor = (32767 / 32768) / expected.abs().max() if song_id == "loud" else 1.0
        assert (crop - factor * expected).abs().max() <= 0.6 / 32768
        assert song_id != "loud" or (expected.abs().max() > 1 and crop.abs().max() == 32767 / 32768)


def test_packing_sums_what_is_not_asked_for_and_resamples(manifest, packed, tmp_path):
    prepare_packed([manifest], tmp_path / "two", sampling_rate=RATE, stems=["vocals", "other"])
    crop, four = make_dataset(tmp_path / "two", stems=["vocals", "other"]), make_dataset(packed)
    place = [Place(0, 1.5)]
    assert (crop.read(place * 2)[1] - four.read(place * 4)[1:].sum(dim=0)).abs().max() <= 2 / 32768
    prepare_packed([packed], tmp_path / "slow", sampling_rate=RATE // 2)  # packed again
    slow = read_manifest(tmp_path / "slow")[0]
    assert (slow.sampling_rate, slow.duration, len(open_packed(slow.paths("bass")[0]))) == (4000, 5.0, 20000)


def test_packing_goes_on_and_refuses_what_would_mix(manifest, tmp_path, capsys):
    out, lines = tmp_path / "out", manifest.read_text().splitlines(keepends=True)
    first = manifest.with_name("first.jsonl")
    first.write_text(lines[0])
    arguments = ["--output_dir", str(out), "--sampling_rate", str(RATE)]
    assert main(["prepare", "pack", str(first), *arguments]) == 0
    before = (out / "plain" / "bass.npy").stat().st_mtime_ns
    broken = manifest.with_name("broken.jsonl")
    broken.write_text(lines[1] + lines[2].replace("loud_other0.wav", "none.wav"))
    assert main(["prepare", "pack", str(first), str(broken), *arguments]) == 1
    assert "1 songs written, 1 already there, 1 skipped\n  loud: Cannot read" in capsys.readouterr().out
    assert main(["prepare", "pack", str(manifest), *arguments]) == 0  # the skipped one is tried again
    assert (out / "plain" / "bass.npy").stat().st_mtime_ns == before and len(read_manifest(out)) == 3

    with pytest.raises(ValueError, match=r"has 'plain', made with .* 8000}, not with .* 48000}: choose another --out"):
        prepare_packed([manifest], out)
    with pytest.raises(ValueError, match=r"made with {'stems': .*'drums'.*}, not with .*\['vocals', 'other'\]}"):
        prepare_packed([manifest], out, RATE, ["vocals", "other"])
    with pytest.raises(ValueError, match="must lie in different folders"):
        prepare_packed([out], out, RATE)
    other = shutil.copytree(manifest.parent, tmp_path / "other")  # of the same ids
    with pytest.raises(ValueError, match=rf"made with {{'files': '{manifest.parent}/.*'}}, not with .*'{other}/"):
        prepare_packed([other / manifest.name], out, RATE)
    with pytest.raises(ValueError, match=r"several songs of the ids \['plain'\]"):
        prepare_packed([first, manifest], tmp_path / "twice")
    first.write_text(lines[0].replace('"plain"', '"../plain"'))
    with pytest.raises(ValueError, match="no folder of its own"):
        prepare_packed([first], tmp_path / "outside")


def test_packed_songs_of_another_rate_and_files_of_another_kind_are_refused(packed, tmp_path):
    with pytest.raises(ValueError, match=r"'plain' is packed at 8000 Hz.* 48000: pack it again with .*_rate 48000"):
        StemDataset(packed)
    path = tmp_path / "float.npy"
    np.save(path, np.zeros((2, 10)))
    with pytest.raises(AudioReadError, match=r"expected int16 of shape \(T,\).* got float64 of shape \(2, 10\)"):
        read_piece(path, 0.0, 10, RATE, tmp_path)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(AudioReadError, match="Cannot read"):
        read_piece(path, 0.0, 10, RATE, tmp_path)


def test_the_same_seed_epoch_and_index_give_the_same_crops_for_ever():
    """Numbers written down before choosing and reading were separated (numpy 2): trained runs can be repeated."""
    songs = []
    for i in range(4):
        stems = {"vocals": ["v"], "drums": ["d"], "bass": ["b"] if i else [], "other": ["o"]}
        songs.append(Song(f"s{i}", "train", stems, 10.0 + 7 * i, 48000, "a" if i < 2 else "b"))
    dataset = StemDataset(songs, remix_probability=0.5, seed=7, source_weights={"a": 1.0, "b": 2.0})
    dataset.set_epoch(2)
    assert dataset.draw(dataset.rng(0)) == [(1, pytest.approx(5.786990611578137), 1.0)] * 4
    starts = [4.369093645870883, 17.46551408143806, 17.58707128233518, 15.051053811854377]
    assert dataset.draw(dataset.rng(42)) == [(n, pytest.approx(s), 1.0) for n, s in zip((2, 3, 3, 2), starts)]


@pytest.mark.parametrize("device", DEVICES)
@given(seed=st.integers(0, 2**31), indices=st.lists(st.integers(0, 39), min_size=1, max_size=6))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_crops_of_the_device_are_the_datasets(packed, device, seed, indices):
    plain = make_dataset(packed, seed=seed)
    varied = make_dataset(packed, seed=seed, max_semitones=5, audible_probability=0.7)
    for epoch, dataset in enumerate((plain, plain, varied)):
        corpus = DeviceCorpus(dataset, device)
        dataset.set_epoch(epoch)
        crops = corpus.crops(indices)
        assert torch.equal(crops["stems"].cpu(), torch.stack([dataset[index]["stems"] for index in indices]))
        torch.testing.assert_close(crops["mixture"], crops["stems"].sum(dim=1))


def test_the_device_draws_silent_crops_again_and_counts_its_bytes(tmp_path):
    samples = np.zeros(20 * RATE, dtype=np.int16)
    samples[: 10 * RATE] = 1000
    write_packed(tmp_path / "vocals.npy", samples)
    song = Song("s", "train", {"vocals": [str(tmp_path / "vocals.npy")]}, 20.0, RATE, "test")
    dataset = make_dataset([song])
    corpus = DeviceCorpus(dataset, "cpu")
    crops = corpus.crops(list(range(40)))
    assert torch.equal(crops["stems"], torch.stack([dataset[index]["stems"] for index in range(40)]))
    assert crops["mixture"].square().mean(dim=1).min() > 0
    assert torch.equal(corpus.crops([1000])["stems"], corpus.crops([1000])["stems"])  # beyond the epoch
    assert corpus.num_bytes == 2 * 4 * (20 * RATE + 1)
    with pytest.raises(ValueError, match=f"1 songs take {corpus.num_bytes} bytes of cpu, more than max_bytes=1000"):
        DeviceCorpus(dataset, "cpu", max_bytes=1000)


def test_the_device_takes_files_that_are_not_packed(manifest):
    dataset = make_dataset([song for song in read_manifest(manifest) if song.id != "loud"])
    crops = DeviceCorpus(dataset, "cpu").crops(list(range(20)))
    expected = torch.stack([dataset[index]["stems"] for index in range(20)])
    assert (crops["stems"] - expected).abs().max() <= 0.6 / 32768


@given(start=st.integers(0, 7), size=st.integers(1, 8), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_augmentation_does_not_depend_on_how_a_batch_is_divided(start, size, seed):
    generator = torch.Generator().manual_seed(seed)
    stems = torch.randn(8, 4, 500, generator=generator)
    augmentation, stop = StemAugmentation(), min(start + size, 8)
    draw, levels = augmentation.draw(8, generator), draw_levels(8, generator)
    whole = set_level(augmentation.apply(stems, draw), levels)
    part = set_level(augmentation.apply(stems[start:stop], draw.rows(start, stop)), levels[start:stop])
    # 1e-6: sums of other batch sizes round otherwise.
    torch.testing.assert_close(part, whole[start:stop], rtol=1e-5, atol=1e-6)
    joined = AugmentationDraw.join([draw.rows(0, start), draw.rows(start, 8)])
    assert torch.equal(joined.gain, draw.gain) and torch.equal(joined.gains_db, draw.gains_db)


def test_augmentation_that_is_off_changes_nothing_and_wrong_sizes_are_refused():
    stems = torch.randn(2, 4, 500)
    off = StemAugmentation(gain_range=(1.0, 1.0), polarity_probability=0.0, eq_probability=0.0)
    assert torch.equal(off(stems), stems)
    with pytest.raises(ValueError, match=r"Drawn for \(batch, stems\) = \(3, 4\), got stems of \(2, 4\)"):
        off.apply(stems, off.draw(3))


def make_bank(dataset: StemDataset, device: str = "cpu", **options) -> tuple[TokenBank, list[int]]:
    """A bank over augmented crops, whose codes are the stems' first samples, and the indices that it has read."""
    # The equaliser is told 48 kHz: at the songs' 8 kHz two of its bands would lie above the Nyquist frequency.
    corpus, augmentation, seen = DeviceCorpus(dataset, device), StemAugmentation(), []

    def read_crops(indices):
        seen.extend(indices)
        generators = [torch.Generator().manual_seed(index) for index in indices]
        draw = AugmentationDraw.join([augmentation.draw(1, generator) for generator in generators])
        levels = torch.cat([draw_levels(1, generator) for generator in generators])
        crops = corpus.crops(indices)
        return {**crops, "stems": set_level(augmentation.apply(crops["stems"], draw), levels)}

    def encode(stems):
        return (stems[..., :6] * 1000).round().long().unflatten(-1, (3, 2))

    return TokenBank(read_crops, encode, **options), seen


@pytest.mark.parametrize("device", DEVICES)
@given(size=st.integers(1, 9), share=st.floats(0, 1), step=st.integers(0, 12), chunk=st.integers(1, 10))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bank_filled_at_a_step_is_the_one_that_ran_there(packed, device, size, share, step, chunk):
    refresh = round(share * size)
    make = partial(make_bank, make_dataset(packed), device, size=size, refresh=refresh)
    ran, seen = make()
    for number in range(step + 1):
        expected = ran.batch(number, 5, torch.Generator().manual_seed(number))
    assert seen == list(range(size + step * refresh))  # every crop once
    fresh, seen = make(chunk=chunk)
    fresh.fill(step)
    assert seen == list(range(step * refresh, step * refresh + size))
    batch = fresh.batch(step, 5, torch.Generator().manual_seed(step))
    # The stored samples may differ by one step of int16: other batch sizes round otherwise.
    torch.testing.assert_close(batch["stems"], expected["stems"], rtol=0, atol=1.01 * 4 / 32768)
    assert (batch["audio_codes"] - expected["audio_codes"]).abs().max() <= 1
    ran.fill(0)  # back again
    assert seen == list(range(step * refresh, step * refresh + size))


def test_a_batch_of_the_bank_mixes_stems_and_their_codes():
    def read_crops(indices):  # stem s of crop i is i / 10 + s / 100 throughout, also beyond 1; 16 and 17 are estimated
        crops = torch.tensor(indices)[:, None]
        stems = (crops / 10 + torch.arange(3) / 100)[..., None].expand(-1, -1, 8)
        return {"stems": stems, "known": torch.ones_like(stems[..., 0]).bool(), "estimated": crops[:, 0] // 2 == 8}

    def encode(stems):
        return (stems[..., :4] * 100).round().long().unflatten(-1, (2, 2))

    batches = {}
    for offset, probability in ((0, 1.0), (1, 0.0)):
        bank = TokenBank(read_crops, encode, 6, 2, probability, chunk=4, index_offset=offset, index_stride=2)
        batch = batches[offset] = bank.batch(3, 50, torch.Generator().manual_seed(0))
        assert batch["stems"].shape == (50, 3, 8) and batch["audio_codes"].shape == (50, 3, 2, 2)
        assert batch["stems"].dtype == torch.float32 and batch["audio_codes"].dtype == torch.int64
        torch.testing.assert_close(batch["mixture"], batch["stems"].sum(dim=1))
        torch.testing.assert_close(batch["audio_codes"][..., 0, 0] / 100, batch["stems"][..., 0], atol=1e-4, rtol=0)
        crops = batch["audio_codes"][..., 0, 0] // 10
        assert set(crops.unique().tolist()) == {2 * crop + offset for crop in range(6, 12)}
    stems = [batches[offset]["audio_codes"][..., 0, 0] // 10 for offset in (0, 1)]
    assert not batches[0]["estimated"].any()
    assert torch.equal(batches[1]["estimated"], stems[1][:, 0] == 17) and batches[1]["estimated"].any()
    assert (stems[0] != stems[0][:, :1]).any(dim=1).float().mean() > 0.8
    assert (stems[1] == stems[1][:, :1]).all()
    for options in ({"refresh": 7}, {"chunk": 0}, {"index_offset": 2, "index_stride": 2}):
        with pytest.raises(ValueError, match="Need"):
            TokenBank(read_crops, encode, **{"size": 6, "refresh": 2, **options})


def test_sums_of_stems_stay_sums_from_the_manifest_to_the_batch(tmp_path):
    writer = ManifestWriter(tmp_path / "songs" / "manifest.jsonl")
    write_song(writer, "backed", 3, **{"vocals": 1, "guitar": 1, "drums+bass+other": 1})
    write_song(writer, "plain", 4, vocals=1, drums=1, bass=1, other=1)
    prepare_packed([writer.path], tmp_path / "packed", sampling_rate=RATE)
    songs = {song.id: song for song in read_manifest(tmp_path / "packed")}
    assert list(songs["backed"].stems) == ["vocals", "other", "drums+bass+other"]
    with pytest.raises(ValueError, match="No song"):  # they are asked for, or left out
        make_dataset([songs["backed"]])

    options = {"partly_known": True, "epoch_size": 60, "audible_probability": 1.0}
    dataset = make_dataset(tmp_path / "packed", **options)
    corpus = DeviceCorpus(dataset, "cpu").crops(list(range(60)))
    seen = set()
    for index in range(60):
        crop = dataset[index]
        backed = [song_id == "backed" for song_id in crop["song_ids"]]
        # Where the backing track is heard, no drums and bass of another song are.
        expected = [True, *[not backed[3]] * 3]
        assert crop["known"].tolist() == expected and backed[1] == backed[2] == backed[3]
        assert crop["stems"].any(dim=1).tolist() == [True, not backed[3], not backed[3], True]
        assert crop["estimated"] != crop["remixed"] and (crop["remixed"] or backed[0] == backed[3])
        seen.add((backed[0], backed[3]))
        for name in ("stems", "known", "estimated", "remixed"):
            assert torch.equal(corpus[name][index], crop[name])
    assert len(seen) == 4
    two = make_dataset(tmp_path / "packed", stems=["vocals", "other"])[0]  # nothing is unknown here
    assert two["known"].all() and two["stems"].shape == (2, RATE)

    def read_crops(indices):
        return {name: values[indices] for name, values in corpus.items() if name != "song_ids"}

    bank = TokenBank(read_crops, lambda stems: torch.zeros(*stems.shape[:2], 2, 1), 60, 0, remix_probability=1.0)
    batch = bank.batch(0, 200, torch.Generator().manual_seed(0))
    whole = batch["known"][:, 1:].all(dim=1)
    assert batch["known"][:, 0].all() and torch.equal(whole, batch["known"][:, 1:].any(dim=1)) and 0 < whole.sum() < 200
    tracks = corpus["stems"][~corpus["known"][:, 1], 3, :50]
    distances = (batch["stems"][:, None, 3, :50] - tracks).abs().amax(dim=2)  # of each crop's other to backing tracks
    assert torch.equal(whole, distances.amin(dim=1) > 1e-3)
