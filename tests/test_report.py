"""Pictures and the page of an evaluation: what is shown, that it is true, and that names cannot break it."""

import json
import os
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
import torch

from evaluation_mss import pictures
from evaluation_mss.report import markdown_to_html, write_report
from processing_mss import write_audio

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
STEMS = ["vocals", "drums"]
RATE = 16000
ODD_NAME = """<b>"ours" & #1 100% 'é'"""


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * rate)) / rate)


def sheet_figure(monkeypatch, *args):
    """The figure that `spectrogram_sheet` would write."""
    figures = []
    monkeypatch.setattr(pictures, "save_png", lambda figure, path: figures.append(figure))
    pictures.spectrogram_sheet(*args, path="unused.png")
    return figures[0]


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
@pytest.mark.parametrize("hertz", [200, 1000, 5000])
def test_a_tone_is_drawn_at_the_height_of_its_frequency(rate, hertz):
    levels = pictures.mel_levels(tone(hertz, rate=rate)[None], rate)
    assert levels.shape[1] == pictures.FRAMES_PER_SECOND
    loudest = (levels.mean(axis=1).argmax() + 0.5) / len(levels)
    assert loudest == pytest.approx(pictures.mel_heights([hertz], rate)[0], abs=1 / len(levels))


def test_a_sheet_has_a_column_for_each_stem_and_a_row_for_each_system_on_one_scale(monkeypatch):
    reference = {"vocals": tone(440)[None].repeat(2, 1), "drums": tone(100)[None]}
    rows = {
        "quiet": {stem: 0.01 * waveform for stem, waveform in reference.items()},
        "loud": {"vocals": 10 * tone(440)},
        "reference": reference,
        "mixture": {"mixture": sum(reference.values())},
    }
    cells = sheet_figure(monkeypatch, rows, STEMS, RATE).axes[:8]
    assert [cell.get_ylabel() for cell in cells[::2]] == ["mixture", "reference", "quiet", "loud"]
    assert [cell.get_title() for cell in cells[:2]] == STEMS
    assert [text.get_text() for text in cells[7].texts] == ["no estimate"] and not cells[7].images
    shown = [cell.images[0] for cell in cells[:7]]
    assert {image.get_clim() for image in shown} == {(-80, 0)}
    mixture, mixture_again, vocals, _, quiet, _, loud = [image.get_array().max() for image in shown]
    assert mixture == mixture_again == pytest.approx(0, abs=0.1), "the scale is that of mixture and reference"
    assert quiet - vocals == pytest.approx(-40, abs=0.1) and loud - vocals == pytest.approx(20, abs=0.1)


def test_silence_is_dark_and_may_be_short(monkeypatch):
    figure = sheet_figure(monkeypatch, {"reference": {"vocals": torch.zeros(2, 100)}}, ["vocals"], 44100)
    (image,) = figure.axes[0].images
    assert image.get_array().max() == pytest.approx(image.get_clim()[0], abs=1e-3)


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        pictures.spectrogram_sheet({"ours": {"piano": tone(440)}}, STEMS, RATE, tmp_path / "sheet.png")


def test_a_picture_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    figure, _ = pictures.new_figure(1, 1, (2, 1))
    path = tmp_path / "folder" / "4.Potassium@100s.png"
    pictures.save_png(figure, path)
    whole = path.read_bytes()
    assert whole.startswith(b"\x89PNG")

    def half_a_picture(temporary, **options):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    figure.savefig = half_a_picture
    with pytest.raises(OSError, match="disk full"):
        pictures.save_png(figure, path)
    assert path.read_bytes() == whole and list(path.parent.iterdir()) == [path]


class Page(HTMLParser):
    """What a browser would see: the addresses of a page, its players, its text; tags must be closed in order."""

    VOID = {"meta", "img"}

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.players, self.tags, self.words, self.open = [], [], set(), [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "audio":
            self.players.append((attributes["aria-label"], attributes["src"]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def finished(tmp_path):
    """The output folder of an evaluation of three systems, whose audio of one excerpt was kept."""
    identities = {"spleeter": "1.0", ODD_NAME: "abc", "failed everywhere": "2", "older": "new checkpoint"}
    sounds = {"reference": STEMS, ODD_NAME: STEMS, "spleeter": ["vocals"], "mixture": ["mixture"], "older": STEMS}
    for system, names in sounds.items():
        folder = tmp_path / "audio" / system / "a & b@5s"
        for name in names:
            write_audio(folder / f"{name}.flac", tone(440, 0.5)[None].numpy(), RATE)
        if system in identities:
            text = "old checkpoint" if system == "older" else identities[system]
            (folder / "identity.txt").write_text(text, encoding="utf-8")
    write_audio(tmp_path / "audio" / "reference" / "no estimates" / "vocals.flac", tone(440, 0.5)[None].numpy(), RATE)
    systems = {name: {"identity": identity} for name, identity in identities.items()}
    (tmp_path / "summary.json").write_text(json.dumps({"systems": systems, "stems": STEMS}), encoding="utf-8")
    text = f"# Evaluation\n\n| system | mean |\n|---|---:|\n| {ODD_NAME} | 3.21 |\n"
    (tmp_path / "tables.md").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_page_plays_and_shows_what_is_there_and_nothing_else(finished):
    path = write_report(finished)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert [label for label, _ in page.players] == [
        "mixture, mixture",
        "reference, vocals",
        "reference, drums",
        "spleeter, vocals",
        f"{ODD_NAME}, vocals",
        f"{ODD_NAME}, drums",
    ]
    assert page.words.count("no estimate") == 1
    for address in page.addresses:
        parts = urlsplit(address)
        assert not parts.scheme and not parts.netloc, "the page needs nothing from elsewhere"
        assert (finished / unquote(parts.path)).exists() if parts.path else f'id="{parts.fragment}"' in text
    assert [path.name for path in (finished / "pictures").iterdir()] == ["a & b@5s.png"]
    assert "b" not in page.tags and ODD_NAME in page.words, "a name is text, never markup"
    assert not list(finished.glob(".report*"))


def test_without_audio_the_page_is_its_tables(finished):
    (finished / "audio").rename(finished / "elsewhere")
    page = Page(write_report(finished).read_text(encoding="utf-8"))
    assert "3.21" in page.words and not page.players and not page.addresses
    assert not (finished / "pictures").exists()


def test_two_processes_may_write_the_page_at_once(finished, monkeypatch):
    (finished / "audio").rename(finished / "elsewhere")
    replace, calls = os.replace, []

    def late(source, target):
        calls.append(target)
        if target == finished / "report.html" and calls.count(target) == 1:
            write_report(finished)  # by another process, between this one's writing and renaming
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    assert "3.21" in write_report(finished).read_text(encoding="utf-8")
    assert calls.count(finished / "report.html") == 2 and not list(finished.glob(".report*"))


def test_without_an_evaluation_there_is_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"summary\.json"):
        write_report(tmp_path)


def test_markdown_of_tables():
    text = "# A\n## B **bold**\none\ntwo\n- x `**y**`\n- <i>\n\n| a | b |\n|:--|--:|\n| p \\| q | 1 |\n| - | |\nafter"
    lines = markdown_to_html(text).splitlines()
    assert lines == [
        "<h1>A</h1>",
        "<h2>B <strong>bold</strong></h2>",
        "<p>one two</p>",
        "<ul><li>x <code>**y**</code></li><li>&lt;i&gt;</li></ul>",
        '<div class="wide"><table>',
        '<thead><tr><th>a</th><th class="number">b</th></tr></thead>',
        "<tbody>",
        '<tr><td>p | q</td><td class="number">1</td></tr>',
        '<tr><td>-</td><td class="number"></td></tr>',
        "</tbody>",
        "</table></div>",
        "<p>after</p>",
    ]
