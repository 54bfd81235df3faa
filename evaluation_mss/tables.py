"""Markdown tables in the form of the paper's, from the summary of an evaluation (`evaluation.summarize`)."""

from collections.abc import Iterable

from .protocol import CODEC

NONE = "-"
VOCALS = {"dnsmos_sig": "SIG", "dnsmos_bak": "BAK", "dnsmos_ovrl": "OVRL", "nisqa": "NISQA"}
SIGNAL = {
    "usdr": "usdr (dB)",
    "si_sdr": "si_sdr (dB)",
    "csdr": "csdr (dB)",
    "log_wmse": "log_wmse",
    "mel_distance": "mel_distance (dB, lower is better)",
}
CODEC_NOTE = (
    "As in the paper, the references went through the codec, and the estimates too, unless they are a codec's output "
    "already."
)

Row = tuple[str, list[str]]  # name of the system, cells


def render_tables(summary: dict) -> str:
    """All tables as one text. Those without a score are left out; what could not run is listed at the end."""
    systems = list(summary["systems"])
    parts = ["# Evaluation", _introduction(summary)]
    parts += _visqol_tables(summary, "Table 1", systems)
    parts += _vocals_tables(summary, systems)
    if len(summary["ablations"]) > 1:
        parts += _visqol_tables(summary, "Table 3 (ablations)", summary["ablations"])
    parts += _signal_table(summary, systems)
    parts += _differences(summary)
    parts += ["## What ran", _runs(summary)]
    problems = _problems(summary)
    if problems:
        parts += ["## What could not run", "\n".join(f"- {problem}" for problem in problems)]
    return "\n\n".join(parts) + "\n"


def _introduction(summary: dict) -> str:
    text = (
        f"{summary['description']}: {_count(summary['num_songs'], 'song')}, "
        f"{_count(summary['num_excerpts'], 'excerpt')}. Means over songs, of each song over its excerpts; in brackets "
        f"the 95 % confidence interval, from {summary['num_resamples']} bootstrap samples of songs (none for a single "
        "song); n is the number of songs in which a score is defined, where that is not all. A dash stands for no "
        "estimate, or for a score that is not defined."
    )
    if summary["num_pending"]:
        text += f"\n\n**Not finished: {_count(summary['num_pending'], 'separation')} still to do.**"
    return text


def _visqol_tables(summary: dict, title: str, systems: list[str]) -> list[str]:
    columns = [*summary["stems"], "mean"]
    parts = []
    for score, form in (("visqol", "ViSQOL"), (f"visqol{CODEC}", "ViSQOL through the codec")):
        rows = [
            (system, [_cell(summary, system, score, column) for column in columns])
            for system in systems
            if score in summary["systems"][system]["scores"]
        ]
        parts += _table(summary, f"{title}: {form}", [score], columns, rows)
    return parts


def _vocals_tables(summary: dict, systems: list[str]) -> list[str]:
    parts = []
    for ending, form in (("", "vocals"), (CODEC, "vocals through the codec")):
        scores = [score + ending for score in VOCALS]
        rows = [
            (system, [_cell(summary, system, score, "vocals") for score in scores])
            for system in systems
            if summary["systems"][system]["scores"].keys() & set(scores)
        ]
        parts += _table(summary, f"Table 2: {form}", [f"dnsmos{ending}", f"nisqa{ending}"], list(VOCALS.values()), rows)
    return parts


def _signal_table(summary: dict, systems: list[str]) -> list[str]:
    columns = [*summary["stems"], "mean"]
    rows = [
        (system, [label, *(_cell(summary, system, score, column) for column in columns)])
        for score, label in SIGNAL.items()
        for system in systems
        if score in summary["systems"][system]["scores"]
    ]
    return _table(summary, "Signal scores", list(SIGNAL), ["score", *columns], rows)


def _differences(summary: dict) -> list[str]:
    """How much more every other system has than the first model of Table 3."""
    labels = {"visqol": "visqol", f"visqol{CODEC}": "visqol through the codec", **SIGNAL}
    columns = [*summary["stems"], "mean"]
    scores, rows = [], []
    for score, label in labels.items():
        for system, entry in summary["systems"].items():
            if score in entry.get("differences", {}):
                cells = [_cell(summary, system, score, column, "differences") for column in columns]
                rows.append((system, [entry["reference"], label, *cells]))
                scores = list(dict.fromkeys([*scores, score]))
    note = (
        "How much more than `less` a system has, excerpt by excerpt. Intervals say how other songs would vary, not how "
        "another training or other samples would; and of many intervals, some leave zero out by chance."
    )
    title = "Table 3 (ablations): differences from the first model"
    return _table(summary, title, scores, ["less", "score", *columns], rows, note)


def _table(
    summary: dict, title: str, metrics: list[str], header: list[str], rows: list[Row], note: str = ""
) -> list[str]:
    """Title, what the figures rest on, and the table; nothing without rows."""
    if not rows:
        return []
    plain = [metric.removesuffix(CODEC) for metric in metrics]
    facts = [
        f"{metric}: {summary['versions'][metric]}" for metric in dict.fromkeys(plain) if metric in summary["versions"]
    ]
    through_codec = plain != metrics
    if through_codec:
        facts.append(summary["codec"])
    facts += [f"seed {summary['seed']}", summary["date"], _count(summary["num_songs"], "song")]
    notes = [CODEC_NOTE] if through_codec else []
    caption = " ".join(["; ".join(facts) + ".", *notes, *filter(None, [note])])
    lines = []
    for system, cells in rows:
        entry = summary["systems"][system]
        lines.append([system, *cells, str(entry["num_songs"]), f"`{entry['identity']}`"])
    return [f"## {title}", caption, markdown_table(["system", *header, "songs", "checkpoint"], lines)]


def _runs(summary: dict) -> str:
    lines = [
        [
            system,
            str(entry["num_excerpts"]),
            str(len(entry["failures"])),
            f"{entry['seconds']:.1f}",
            NONE if entry["speed"] is None else f"{entry['speed']:.2f}",
        ]
        for system, entry in summary["systems"].items()
    ]
    return markdown_table(["system", "excerpts", "failed", "seconds", "x real time"], lines)


def _problems(summary: dict) -> list[str]:
    """One line for each reason, with all that it holds for."""
    reasons: dict[str, list[str]] = {}
    for system, entry in summary["systems"].items():
        for excerpt, error in entry["failures"].items():
            reasons.setdefault(error, []).append(f"{system} on {excerpt}")
        for metric, reason in entry["unavailable"].items():
            names = reasons.setdefault(reason, [])
            if metric not in names:
                names.append(metric)
    return [f"{', '.join(names)}: {' '.join(reason.split())}" for reason, names in reasons.items()]


def _cell(summary: dict, system: str, score: str, column: str, kind: str = "scores") -> str:
    cell = summary["systems"][system][kind].get(score, {}).get(column)
    if cell is None or cell["mean"] is None:
        return NONE
    text = f"{cell['mean']:.2f}"
    if cell["low"] is not None:
        text += f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    if cell["num_songs"] < summary["systems"][system]["num_songs"]:
        text += f" (n={cell['num_songs']})"
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def markdown_table(header: Iterable[str], rows: Iterable[list[str]]) -> str:
    """Figures to the right: every column but the first and those of words."""
    header = list(header)
    marks = [
        "---" if index == 0 or name in ("score", "less", "checkpoint") else "---:" for index, name in enumerate(header)
    ]
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
