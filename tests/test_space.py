"""The Space's app, started as on Hugging Face and used through its API; tests/test_mixer.py uses it in a browser."""

import time
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import yaml

pytest.importorskip("gradio", reason="gradio is not installed (pip install -e '.[space]')")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install -e '.[space]')")
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError, ValidationError

from commands_mss.push import write_space
from tests.space_app import ALLOWED_SECONDS, ROOT, Space

SPACE = ROOT / "space"
STEMS = ["vocals", "drums", "bass", "other"]


@pytest.fixture(scope="module")
def app(model_dir, tmp_path_factory):
    """As `mss-lm push --space` uploads it, with the model inside, and without this package."""
    folder = tmp_path_factory.mktemp("space")
    write_space(folder, model_dir)
    with Space("", folder) as app:
        yield app


@pytest.fixture
def client(app, tmp_path):
    return Client(app.address, verbose=False, analytics_enabled=False, download_files=tmp_path / "downloads")


@pytest.fixture
def song(tmp_path):
    """1.2 s of stereo at 44.1 kHz whose channels differ."""
    time_s = np.arange(52920) / 44100
    left = 0.3 * np.sin(2 * np.pi * 220 * time_s) + np.random.default_rng(0).uniform(-0.2, 0.2, len(time_s))
    right = 0.3 * np.sin(2 * np.pi * 440 * time_s)
    path = tmp_path / "song.wav"
    soundfile.write(path, np.stack((left, right), axis=1), 44100)
    return path


def separate(client, path, stems=STEMS, output="filtered", candidates=1, seed=0, format="wav"):
    """What the app answers: the mixer's tracks by name, the files of the zip by name, and the note."""
    arguments = [handle_file(path), list(stems), output, candidates, seed, format]
    value, archive, note = client.predict(*arguments, api_name="/separate")
    folder = Path(archive).parent / "files"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return {track["name"]: track for track in value["tracks"]}, {file.name: file for file in folder.iterdir()}, note


def test_filtered_stems_have_the_songs_layout_and_add_up_to_it(client, song):
    tracks, files, note = separate(client, song, format="flac")
    assert list(tracks) == ["mixture", *STEMS] and sorted(files) == sorted(f"song_{name}.flac" for name in STEMS)
    assert "`song.wav`, 1 s, filtered in" in note and "seed 0" in note
    samples = {}
    for name, track in tracks.items():
        info = soundfile.info(track["file"])
        assert (info.samplerate, info.frames, info.channels, info.subtype) == (44100, 52920, 2, "PCM_16")
        samples[name] = soundfile.read(track["file"], dtype="int16")[0]
        raw = Path(track["file"]).read_bytes()[track["offset"] :]  # what the page fetches
        np.testing.assert_array_equal(np.frombuffer(raw, "<i2").reshape(-1, 2), samples[name])
        assert max(track["peaks"]) == pytest.approx(np.abs(samples[name].astype(float)).max() / 2**15, abs=1e-3)
        assert len(track["peaks"]) == len(track["levels"]) <= 800 and max(track["levels"]) <= max(track["peaks"])
        with open(track["spectrogram"], "rb") as picture:
            assert picture.read(4) == b"\x89PNG"
    for name in STEMS:
        np.testing.assert_array_equal(soundfile.read(files[f"song_{name}.flac"], dtype="int16")[0], samples[name])
    np.testing.assert_allclose(samples["mixture"] / 2**15, soundfile.read(song)[0], atol=2**-15)
    total = sum(samples[name].astype(int) for name in STEMS)
    np.testing.assert_allclose(total, samples["mixture"], atol=3)  # each is half a step off


def test_chosen_stems_generated(client, song):
    tracks, files, note = separate(client, song, ["drums"], "generated")
    assert list(tracks) == ["mixture", "drums"] and list(files) == ["song_drums.wav"] and "generated" in note
    info = soundfile.info(tracks["drums"]["file"])
    assert (info.samplerate, info.frames, info.channels) == (44100, 52920, 1)


def test_candidates_are_sampled_by_the_seed(client, song):
    first, again, other = [
        Path(separate(client, song, ["vocals"], candidates=2, seed=seed)[0]["vocals"]["file"]).read_bytes()
        for seed in (3, 3, 4)
    ]
    assert first == again != other


def test_what_cannot_be_separated_is_said_readably(client, song, tmp_path):
    text = tmp_path / "notes.wav"
    text.write_text("These are words.")
    with pytest.raises(AppError, match=r"Cannot read notes\.wav as audio"):
        separate(client, text)
    long = tmp_path / "long.wav"
    soundfile.write(long, np.zeros(8000 * (ALLOWED_SECONDS + 1)), 8000)
    with pytest.raises(AppError, match=f"long.wav as audio: it has 61 s, {ALLOWED_SECONDS} s at most are taken"):
        separate(client, long)
    playlist = tmp_path / "list.wav"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{song}\n#EXT-X-ENDLIST\n")
    with pytest.raises(AppError, match=r"Cannot read list\.wav as audio: is it wav"):
        separate(client, playlist)
    many = tmp_path / "many.wav"
    soundfile.write(many, np.zeros((8000 * 59, 50)), 8000)
    with pytest.raises(AppError, match=r"many\.wav has 50 channels at 8000 Hz, too many"):
        separate(client, many)
    with pytest.raises(ValidationError, match="at least one stem"):
        separate(client, song, [])
    with pytest.raises(ValidationError, match="Upload or record a song first"):
        client.predict(None, api_name="/separate")


def test_only_what_was_uploaded_is_read_and_only_by_the_queue(client, song):
    for more in ({}, {"is_stream": True}):
        address = {"path": f"{client.src}theme.css", "meta": {"_type": "gradio.FileData"}, **more}
        with pytest.raises(httpx.HTTPStatusError) as refused:
            client.predict(address, api_name="/separate")
        assert "addresses are not followed" in refused.value.response.text
    direct = httpx.post(f"{client.src}gradio_api/run/separate", json={"data": [None, STEMS, "filtered", 1, 0, "wav"]})
    assert direct.status_code == 404 and "queue" in direct.text


def test_each_visitor_has_two_places_until_songs_are_done_or_cancelled(app, client, song, tmp_path):
    long = tmp_path / "long.wav"
    soundfile.write(long, np.random.default_rng(0).uniform(-0.5, 0.5, 8000 * (ALLOWED_SECONDS - 1)), 8000)
    running = client.submit(handle_file(long), STEMS, "filtered", api_name="/separate")
    deadline = time.monotonic() + 30
    while not (progress := running.status().progress_data) or " s left" not in progress[0].desc:
        assert time.monotonic() < deadline and not running.done()
        time.sleep(0.05)
    assert progress[0].desc.startswith("Separating, ") and progress[0].length >= progress[0].index > 0
    waits, comes = (Client(app.address, verbose=False, analytics_enabled=False) for _ in range(2))
    waiting = waits.submit(handle_file(song), api_name="/separate")
    while waiting.status().code.value != "IN_QUEUE":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(ValidationError, match="2 of your songs wait"):
        comes.predict(handle_file(song), api_name="/separate")
    waits.predict(api_name="/stop")
    with pytest.raises(ValidationError, match="2 of your songs wait"):  # it is still in the queue
        comes.predict(handle_file(song), api_name="/separate")
    client.predict(api_name="/stop")
    for given_up in (running, waiting):
        with pytest.raises(AppError, match="Cancelled"):
            given_up.result(timeout=30)
    # A field that was emptied is no number.
    coming = comes.submit(handle_file(song), STEMS, "filtered", 1, None, "wav", api_name="/separate")
    assert len(coming.result(timeout=30)) == 3
    assert not [name for name in app.temporary_files() if name not in app.begin]


def test_the_header_fits_the_package():
    header = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio" and (SPACE / header["app_file"]).is_file() and header["license"] == "apache-2.0"
    assert header["sdk_version"].startswith("6.")
