"""The Space in a real browser, with the checkpoint that ships and the example: what a visitor sees and hears.

Screenshots are written to build/screenshots/.
"""

import io
import shutil
import zipfile

import httpx
import numpy as np
import pytest
import soundfile

from tests.space_app import ROOT, Space

pytest.importorskip("gradio", reason="gradio is not installed (pip install -e '.[space]')")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")

STEMS = ["vocals", "drums", "bass", "other"]
SCREENSHOTS = ROOT / "build" / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--autoplay-policy=no-user-gesture-required",
]
# The object that mixer.js leaves at the element which Gradio gives it.
PLAYER = "[...document.querySelectorAll('#mixer *')].find((node) => node.mixer).mixer.player"
GAINS = f"() => Object.fromEntries({PLAYER}.tracks.map((track) => [track.name, track.gain.gain.value]))"
# What goes to the loudspeakers at one moment, and which place of the song that is meant to be.
HEARD = f"""() => {{
    const player = {PLAYER};
    const samples = player.tracks.map((track) => {{
        const values = new Float32Array(track.analyser.fftSize);
        track.analyser.getFloatTimeDomainData(values);
        return [track.name, Array.from(values)];
    }});
    return {{ position: player.position, samples: Object.fromEntries(samples) }};
}}"""
# How bright the middle of the mixture's waveform is, from 0 to 255.
CANVAS = """() => {
    const canvas = document.querySelector("#mixer canvas");
    const middle = [canvas.width / 2, canvas.height / 2].map(Math.round);
    return canvas.getContext("2d").getImageData(...middle, 1, 1).data[0];
}"""
# Luminances as WCAG has them: contrast of a text with the desk behind it.
CONTRAST = """(selector) => {
    const luminance = (text) => {
        const values = text.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255);
        const [r, g, b] = values.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = luminance(getComputedStyle(document.querySelector("#mixer .desk")).backgroundColor);
    return [...document.querySelectorAll(selector)].map((node) => {
        const front = luminance(getComputedStyle(node).color);
        return (Math.max(front, behind) + 0.05) / (Math.min(front, behind) + 0.05);
    });
}"""


@pytest.fixture(scope="module")
def app():
    if shutil.which("chromium") is None:
        pytest.skip("no chromium (apt install chromium)")
    with Space(str(ROOT / "pretrained_mss"), max_seconds=600) as app:
        yield app


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page that has separated the example; what it complained of and asked others for."""

    def __init__(self, browser, app):
        self.errors, self.foreign = [], []
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))
        self.page.goto(app.address)
        self.page.locator("input[type=file]").first.set_input_files(ROOT / "space/examples/rendered_song_1.mp3")
        self.page.get_by_role("button", name="Play", exact=True).first.wait_for()
        self.page.get_by_role("button", name="Separate", exact=True).click()
        self.page.locator("#mixer .lane").nth(4).wait_for(timeout=90000)

    def _note(self, url: str):
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.foreign.append(url)

    def until(self, condition: str):
        self.page.wait_for_function(condition, timeout=15000)

    def hears(self, **expected: float):
        """Wait until these tracks are heard with these gains, and no others."""
        expected = {**dict.fromkeys(["mixture", *STEMS], 0), **expected}
        for _ in range(100):
            gains = self.page.evaluate(GAINS)
            if {name: round(gain, 2) for name, gain in gains.items()} == expected:
                return
            self.page.wait_for_timeout(100)  # they move smoothly, and on a busy machine late
        raise AssertionError(f"expected {expected}, heard {gains}")

    def files(self) -> dict[str, np.ndarray]:
        """Samples of what the tracks play, as the page gets them; `(samples, channels)` int16."""
        urls = self.page.evaluate(f"() => {PLAYER}.tracks.map((track) => [track.name, track.file.url])")
        content = {name: httpx.get(url).raise_for_status().content for name, url in urls}
        return {name: soundfile.read(io.BytesIO(data), dtype="int16")[0] for name, data in content.items()}


@pytest.fixture(scope="module")
def visit(app, browser):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return Visit(browser, app)


def place_of(heard: list[float], samples: np.ndarray, around: float) -> float:
    """Where, in seconds, the mono sum of samples at 48 kHz is most like what was heard, near `around`."""
    heard = np.array(heard)
    first = max(0, round((around - 0.5) * 48000))
    region = samples[first : first + 48000 + len(heard)].mean(axis=1) / 2**15
    likeness = np.correlate(region, heard)
    energy = np.convolve(region**2, np.ones(len(heard)), "valid")
    likeness /= np.sqrt(energy * np.square(heard).sum()) + 1e-9
    assert likeness.max() > 0.99, "what is heard is not in the file"
    return (first + int(likeness.argmax())) / 48000


def test_tracks_are_heard_in_time_with_each_other_wherever_one_goes(visit):
    files, page = visit.files(), visit.page
    page.keyboard.press("Space")
    visit.until(f"{PLAYER}.position > 1.0")
    for place in (None, 0.7, 0.15):
        if place is not None:
            box = page.locator("#mixer .lane .picture").nth(2).bounding_box()
            page.mouse.click(box["x"] + place * box["width"], box["y"] + box["height"] / 2)
            visit.until(f"Math.abs({PLAYER}.position - {15 * place + 0.5}) < 0.3")
        heard = page.evaluate(HEARD)
        assert not any(heard["samples"]["mixture"])
        places = [place_of(heard["samples"][name], files[name], heard["position"]) for name in STEMS]
        assert max(places) - min(places) < 0.02 and abs(places[0] - heard["position"]) < 0.1
        assert all(np.abs(heard["samples"][name]).max() > 1e-3 for name in STEMS)
    page.keyboard.press("0")
    page.wait_for_timeout(300)
    heard = page.evaluate(HEARD)
    assert abs(place_of(heard["samples"]["mixture"], files["mixture"], heard["position"]) - heard["position"]) < 0.1
    page.keyboard.press("0")
    page.keyboard.press("Space")
    visit.until(f"{PLAYER}.run === null")


def test_solo_mute_and_volume_say_what_is_heard(visit):
    page, every_stem = visit.page, dict.fromkeys(STEMS, 1)
    lane = page.locator("#mixer .lane")
    visit.hears(**every_stem)
    page.keyboard.press("2")
    visit.hears(drums=1)
    lane.nth(1).get_by_role("button", name="Solo").click()
    visit.hears(drums=1, vocals=1)
    page.keyboard.press("0")  # the song itself
    visit.hears(mixture=1)
    lane.nth(0).get_by_role("button").click()
    page.keyboard.press("Shift+Digit3")
    lane.nth(4).get_by_role("slider", name="Volume: other").fill("0.5")
    visit.hears(vocals=1, drums=1, other=0.5)
    assert lane.nth(3).get_by_role("button", name="Mute").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Shift+Digit3")
    lane.nth(4).get_by_role("slider", name="Volume: other").fill("1")
    visit.hears(**every_stem)


def test_the_zip_holds_what_the_players_play(visit):
    with visit.page.expect_download() as download:
        visit.page.get_by_text("All stems (zip)").click()
    assert download.value.suggested_filename == "rendered_song_1_stems.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        names = [f"rendered_song_1_{name}.wav" for name in STEMS]
        assert archive.namelist() == names
        stems = [soundfile.read(io.BytesIO(archive.read(name)), dtype="int16")[0] for name in names]
    played = visit.files()
    for name, stem in zip(STEMS, stems):
        assert np.abs(stem).max() > 300
        np.testing.assert_array_equal(stem, played[name])


def test_it_reads_well_on_desk_and_phone_by_day_and_by_night(visit):
    page = visit.page
    for scheme, picture in (("dark", "dark.png"), ("light", "desktop.png")):
        page.emulate_media(color_scheme=scheme)
        page.evaluate(f"document.body.classList.toggle('dark', {str(scheme == 'dark').lower()})")  # as Gradio does
        page.wait_for_timeout(500)  # colours change slowly
        assert (page.evaluate(CANVAS) > 128) == (scheme == "dark")
        assert min(page.evaluate(CONTRAST, "#mixer .keys, #mixer .time")) > 4.5
        assert min(page.evaluate(CONTRAST, "#mixer .name")) > 3  # bold
        page.screenshot(path=SCREENSHOTS / picture, full_page=True)
    page.get_by_role("button", name="Spectrograms").click()
    images = page.locator("#mixer img")
    assert images.count() == 5 and all(image.evaluate("node => node.naturalWidth > 300") for image in images.all())
    page.screenshot(path=SCREENSHOTS / "spectrograms.png", full_page=True)
    page.get_by_role("button", name="Waveforms").click()
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(
        box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in map(bounds, page.locator("#mixer .lane *").all())
    )
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Clear").wait_for(state="detached")
    page.get_by_role("button", name="rendered_song_2.mp3").click()  # an example, which is separated at once
    page.get_by_text("rendered_song_2.mp3, 15 s,").wait_for(timeout=90000)
    assert visit.errors == [] and visit.foreign == []


def bounds(locator) -> dict[str, float]:
    return locator.bounding_box() or {"x": 0, "width": 0}
