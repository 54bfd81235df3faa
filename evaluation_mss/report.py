"""The report of an evaluation: one page with its tables, spectrograms, and audio players to compare systems by ear."""

import html
import json
import os
import re
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import torch

from processing_mss import read_audio

from .pictures import FIRST_ROWS, spectrogram_sheet
from .results import kept_identity, replace_text

RULE = re.compile(r"\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?")  # the line below the head of a Markdown table
LISTEN_ADVICE = (
    "Starting an audio player stops the others and goes on at their place in the excerpt, so that the same moment can "
    "be compared. Estimates are not made equally loud."
)

STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --faint: #60646c; --page: #fff; --card: #f4f5f7; --line: #d9dce1; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e7ea; --faint: #a3a8b1; --page: #121417; --card: #1d2126; --line: #383d45; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 90rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1, h2, h3, h4 { line-height: 1.25; }
h2 { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { margin-top: 2rem; }
h4 { margin: 0 0 .5rem; font-size: 1rem; }
nav { text-align: right; }
a { color: inherit; }
p, ul { max-width: 60rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { color: var(--faint); font-weight: 600; }
th:first-child, td:first-child { position: sticky; left: 0; padding-left: 0; background: var(--page); }
.number { text-align: right; }
.picture img { display: block; width: 100%; min-width: 46rem; border-radius: .5rem; background: white; }
.system { margin: .75rem 0; padding: .75rem 1rem; border-radius: .5rem; background: var(--card); }
.stems { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: .75rem; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--faint); font-size: .875rem; }
audio { display: block; width: 100%; height: 2.5rem; }
.missing { color: var(--faint); line-height: 2.5rem; }
@media (max-width: 60rem) {
  .stems { grid-template-columns: 1fr; gap: .5rem; }
  figure { display: grid; grid-template-columns: 3.75rem 1fr; align-items: center; }
}
"""

SCRIPT = """
let last = null;
document.addEventListener("play", ({ target }) => {
  for (const player of document.querySelectorAll("audio")) if (player !== target) player.pause();
  const sameExcerpt = last && last !== target && last.dataset.excerpt === target.dataset.excerpt;
  if (sameExcerpt && !last.ended) target.currentTime = last.currentTime;
  last = target;
}, true);
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of music source separation</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""

Audio = dict[str, dict[str, dict[str, Path]]]  # excerpt -> system -> stem -> file


def write_report(output_dir: str | os.PathLike) -> Path:
    """Write `report.html` and `pictures/EXCERPT.png` from what `evaluate` left in its output folder.

    That is `summary.json`, `tables.md`, and, as far as there are any, `audio/SYSTEM/EXCERPT/STEM.flac` with
    `audio/mixture/EXCERPT/mixture.flac`. The page refers to these files by relative paths and to nothing else: the
    folder can be moved, zipped or served as it is.

    Returns:
        the page's path.

    Raises:
        FileNotFoundError: no evaluation has ended there.
    """
    folder = Path(output_dir)
    for name in ("summary.json", "tables.md"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"There is no {name} in {folder}: a report is made of what an evaluation wrote.")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stems = summary["stems"]
    audio = find_audio(folder / "audio", {name: entry["identity"] for name, entry in summary["systems"].items()})
    for excerpt, systems in audio.items():
        draw_excerpt(systems, stems, folder / "pictures" / f"{excerpt}.png", excerpt)
    parts = [markdown_to_html((folder / "tables.md").read_text(encoding="utf-8"))]
    if audio:
        parts.insert(0, '<nav><a href="#listen">Listen and compare</a></nav>')
        parts.append(f'<h2 id="listen">Listen and compare</h2>\n<p>{html.escape(LISTEN_ADVICE)}</p>')
        parts += [excerpt_html(excerpt, systems, stems, folder) for excerpt, systems in audio.items()]
    page = PAGE.format(style=STYLE, script=SCRIPT, body="\n".join(parts))
    replace_text(folder / "report.html", page)
    return folder / "report.html"


def find_audio(folder: Path, identities: dict[str, str]) -> Audio:
    """Files by excerpt; mixture and reference first, then systems in the order given.

    Left out is what a system of another identity (an older checkpoint) made, or did not get through: tables do not say
    a word of it. So are excerpts of which nothing else is left.
    """
    found: Audio = {}
    for system in dict.fromkeys([*FIRST_ROWS, *identities]):
        for path in sorted((folder / system).glob("*/*.flac")):
            if system in FIRST_ROWS or kept_identity(path.parent) == identities[system]:
                found.setdefault(path.parent.name, {}).setdefault(system, {})[path.stem] = path
    return {excerpt: systems for excerpt, systems in sorted(found.items()) if systems.keys() - FIRST_ROWS.keys()}


def draw_excerpt(systems: dict[str, dict[str, Path]], stems: list[str], path: Path, title: str):
    """The spectrograms of one excerpt."""
    rows, rate = {}, 0
    for system, files in systems.items():
        rows[system] = {}
        for stem, file in files.items():
            waveform, rate = read_audio(file)
            rows[system][stem] = torch.from_numpy(waveform)
    spectrogram_sheet(rows, stems, rate, path, title)


def excerpt_html(excerpt: str, systems: dict[str, dict[str, Path]], stems: list[str], folder: Path) -> str:
    """Spectrograms and audio players of one excerpt; `folder` is that of the page."""
    name, picture = html.escape(excerpt), _address(folder / "pictures" / f"{excerpt}.png", folder)
    parts = [
        f"<section>\n<h3>{name}</h3>",
        f'<div class="wide picture"><a href="{picture}"><img src="{picture}" loading="lazy" '
        f'alt="Mel spectrograms of {name}: a column for each stem, a row for each system"></a></div>',
    ]
    for system, files in systems.items():
        columns = ["mixture"] if "mixture" in files else stems
        players = "\n".join(_player(stem, files.get(stem), excerpt, system, folder) for stem in columns)
        parts.append(
            f'<div class="system">\n<h4>{html.escape(system)}</h4>\n'
            f'<div class="stems" style="--columns: {len(stems)}">\n{players}\n</div>\n</div>'
        )
    return "\n".join([*parts, "</section>"])


def _player(stem: str, path: Path | None, excerpt: str, system: str, folder: Path) -> str:
    label = html.escape(stem)
    if path is None:
        return f'<figure><figcaption>{label}</figcaption><span class="missing">no estimate</span></figure>'
    return (
        f'<figure><figcaption>{label}</figcaption><audio controls preload="none" src="{_address(path, folder)}" '
        f'data-excerpt="{html.escape(excerpt)}" aria-label="{html.escape(system)}, {label}"></audio></figure>'
    )


def _address(path: Path, folder: Path) -> str:
    """Relative, as an attribute's value: names may hold spaces, #, % and quotes."""
    return quote(path.relative_to(folder).as_posix())


def markdown_to_html(text: str) -> str:
    """The Markdown that `tables.py` writes: headings, paragraphs, lists, tables, `code`, **bold**.

    HTML in it is shown as text.
    """
    parts = []
    for paragraph in re.split(r"\n\s*\n", re.sub(r"(?m)^(#+ .*)$", r"\n\1\n", text).strip()):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        for kind, group in groupby(lines, _line_kind):
            group = list(group)
            if kind == "heading":
                marks, words = group[0].split(" ", 1)
                level = min(len(marks), 6)
                parts.append(f"<h{level}>{_inline(words)}</h{level}>")
            elif kind == "list":
                parts.append("<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in group) + "</ul>")
            elif kind == "table" and len(group) > 1 and RULE.fullmatch(group[1]):
                parts.append(_table(group))
            else:
                parts.append(f"<p>{_inline(' '.join(group))}</p>")
    return "\n".join(parts)


def _line_kind(line: str) -> str:
    starts = {"#": "heading", "- ": "list", "* ": "list", "|": "table"}
    return next((kind for start, kind in starts.items() if line.startswith(start)), "text")


def _table(lines: list[str]) -> str:
    head, rule, *body = map(_cells, lines)
    kinds = [' class="number"' if mark.endswith(":") else "" for mark in rule]

    def row(tag: str, cells: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}{kind}>{_inline(cell)}</{tag}>" for kind, cell in zip(kinds, cells)) + "</tr>"

    rows = "\n".join(row("td", cells) for cells in body)
    return f'<div class="wide"><table>\n<thead>{row("th", head)}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _cells(line: str) -> list[str]:
    r"""Of a line of a table; `\|` is a bar inside a cell."""
    inner = line.removeprefix("|").removesuffix("|")
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _inline(text: str) -> str:
    words = re.split(r"`([^`]+)`", html.escape(text))  # every second part was between backticks
    words[::2] = [re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part) for part in words[::2]]
    words[1::2] = [f"<code>{part}</code>" for part in words[1::2]]
    return "".join(words)
