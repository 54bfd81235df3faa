"""The Space's app, started as on Hugging Face and used through its API."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import yaml

pytest.importorskip("gradio", reason="gradio is not installed (pip install -e '.[space]')")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install -e '.[space]')")
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "space"
STEMS = ["vocals", "drums", "bass", "other"]
ALLOWED_SECONDS = 60


@pytest.fixture(scope="module")
def client(model_dir, tmp_path_factory):
    """The app in a process of its own, on a free port of the loopback interface."""
    folder = tmp_path_factory.mktemp("space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_ANALYTICS_ENABLED": "0",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SHARE": "0",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "HF_HUB_OFFLINE": "1",
        "MSS_MAX_SECONDS": str(ALLOWED_SECONDS),
        "MSS_MODEL": model_dir,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder),
    }
    log = folder / "log.txt"
    with open(log, "w") as output:
        app = subprocess.Popen([sys.executable, SPACE / "app.py"], env=environment, stdout=output, stderr=output)
    try:
        yield connect(f"http://127.0.0.1:{port}/", app, log, folder / "downloads")
    finally:
        app.terminate()
        try:
            app.wait(10)
        except subprocess.TimeoutExpired:
            app.kill()
            app.wait()


def connect(address: str, app: subprocess.Popen, log: Path, downloads: Path) -> Client:
    deadline = time.monotonic() + 50
    while app.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # the client's exceptions, until the app answers
            return Client(address, verbose=False, analytics_enabled=False, download_files=downloads)
        time.sleep(0.3)
    raise AssertionError(f"The app did not start:\n{log.read_text()}")


@pytest.fixture
def song(tmp_path):
    """1.2 s of stereo at 44.1 kHz whose channels differ."""
    time_s = np.arange(52920) / 44100
    left = 0.3 * np.sin(2 * np.pi * 220 * time_s) + np.random.default_rng(0).uniform(-0.2, 0.2, len(time_s))
    right = 0.3 * np.sin(2 * np.pi * 440 * time_s)
    path = tmp_path / "song.wav"
    soundfile.write(path, np.stack((left, right), axis=1), 44100)
    return path


def separate(client, path, stems=STEMS, output="filtered"):
    """What the app answers: a file of each stem or None, and the picture."""
    *files, picture = client.predict(handle_file(path), list(stems), output, api_name="/separate")
    assert picture["type"] == "matplotlib" and picture["plot"].startswith("data:image/")
    return dict(zip(STEMS, files))


def test_filtered_stems_have_the_songs_layout_and_add_up_to_it(client, song):
    files = separate(client, song)
    for label, file in files.items():
        info = soundfile.info(file)
        assert (info.samplerate, info.frames, info.channels, info.subtype) == (44100, 52920, 2, "PCM_16")
        assert Path(file).name == f"song_{label}.wav"
    total = sum(soundfile.read(file)[0] for file in files.values())
    np.testing.assert_allclose(total, soundfile.read(song)[0], atol=2.01 * 2**-15)  # each is half a step off


def test_chosen_stems_generated(client, song):
    files = separate(client, song, ["drums"], "generated")
    assert [label for label, file in files.items() if file] == ["drums"]
    info = soundfile.info(files["drums"])
    assert (info.samplerate, info.frames, info.channels) == (44100, 52920, 1)


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
    with pytest.raises(AppError, match="at least one stem"):
        separate(client, song, [])
    with pytest.raises(AppError, match="Upload or record a song first"):
        client.predict(None, STEMS, "filtered", api_name="/separate")


def test_only_what_was_uploaded_is_read_and_only_by_the_queue(client, song):
    for more in ({}, {"is_stream": True}):
        address = {"path": f"{client.src}theme.css", "meta": {"_type": "gradio.FileData"}, **more}
        with pytest.raises(AppError, match=r"addresses are not followed|Upload or record a song first"):
            client.predict(address, STEMS, "filtered", api_name="/separate")
    direct = httpx.post(f"{client.src}gradio_api/run/separate", json={"data": [None, STEMS, "filtered"]})
    assert direct.status_code == 404 and "queue" in direct.text


def test_cancelling_ends_a_separation_and_the_next_one_works(client, song, tmp_path):
    long = tmp_path / "long.wav"
    soundfile.write(long, np.random.default_rng(0).uniform(-0.5, 0.5, 8000 * (ALLOWED_SECONDS - 1)), 8000)
    job = client.submit(handle_file(long), STEMS, "filtered", api_name="/separate")
    deadline = time.monotonic() + 30
    while not (progress := job.status().progress_data) or progress[0].desc != "Separating":
        assert time.monotonic() < deadline and not job.done()
        time.sleep(0.05)
    assert progress[0].length >= progress[0].index > 0
    client.predict(api_name="/stop")
    with pytest.raises(AppError, match="Cancelled"):
        job.result(timeout=30)
    assert all(separate(client, song).values())


def test_the_header_and_the_requirements_fit_the_package():
    header = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio" and (SPACE / header["app_file"]).is_file() and header["license"] == "apache-2.0"
    assert header["sdk_version"].startswith("6.")
    setup = (ROOT / "setup.py").read_text()
    ranges = [line for line in (SPACE / "requirements.txt").read_text().splitlines() if re.match("gradio|torch", line)]
    assert len(ranges) == 2 and all(f'"{line}"' in setup for line in ranges)
