"""Code blocks of the documents, and the commands in them."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(path for top in ("docs", "examples", "space", "pretrained_mss") for path in sorted((ROOT / top).rglob("*.md"))),
]

# The first line of a block that nothing runs.
NEEDS = re.compile(r"# (needs) (.+)")
OPERATORS = set("();<>|&")
SHELL_WORDS = {"do", "then", "{", "}", "!"}
# What starts a Python program.
LAUNCHERS = {"python", "python3", "accelerate", "torchrun"}
PROGRAMS = {*LAUNCHERS, "mss-lm"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; `line`: of its first line of code; `runner` runs it, not the tests."""

    path: Path
    line: int
    language: str
    text: str
    runner: str | None

    def __str__(self):
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def mark(self) -> tuple[str, str] | None:
        """("needs" or "run by", what or by whom), or None: the tests run it."""
        if self.runner:
            return "run by", self.runner
        match = NEEDS.fullmatch(self.text.splitlines()[0])
        return match and match.groups()


def blocks(path: Path) -> list[Block]:
    """The bash and python blocks of a document."""
    text = path.read_text()
    pattern = r"^(?:<!-- run by (?P<runner>[^\n]+) -->\n)?```(?P<language>bash|python)\n(?P<text>.*?)^```$"
    return [
        Block(path, text[: fence.start("text")].count("\n") + 1, **fence.groupdict())
        for fence in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
    ]


def inline_commands(path: Path) -> list[list[str]]:
    """Command lines within the prose: code spans that begin with a program and go on."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [command for span in spans if " " in span for command in commands(span)]


def help_commands(path: Path) -> list[list[str]]:
    """Command lines in a program's docstring, its help: a line each, with what it does some spaces later."""
    text = re.sub(r"\s*\\\n\s*", " ", ast.get_docstring(ast.parse(path.read_text())) or "")
    lines = [re.split(r"\s{2,}(?![\s-])", line.strip())[0] for line in text.splitlines()]
    return [command for line in lines if line.split(" ")[0] in PROGRAMS for command in commands(line)]


def heredocs(script: str) -> list[str]:
    """Python that a script has between <<'END' and END."""
    return re.findall(r"<<'END'\n(.*?)^END$", script, re.MULTILINE | re.DOTALL)


def commands(script: str) -> list[list[str]]:
    """The simple commands of a shell script, without comments, redirections and what a heredoc holds.

    Variables that the script sets are replaced; brackets around options that may be left out are dropped.
    """
    script = re.sub(r"<<'END'\n.*?^END$", "", script, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
    values, found = {}, []
    for line in script.splitlines():
        line = re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], match[0]), line)
        line = re.sub(r"\[(--[^]]*)\]", r"\1", line)
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.wordchars += "$[]{}@,:%^"
        command: list[str] = []
        for token in [*lexer, ";"]:
            if token not in SHELL_WORDS and not OPERATORS.issuperset(token):
                command.append(token)
                continue
            while command and re.fullmatch(r"[A-Z_a-z]+=.*", command[0], re.DOTALL):
                name, _, value = command.pop(0).partition("=")
                values[name] = value
            if command and token not in (">", ">>"):
                found.append(command)
            command = []
    return found


def program(command: list[str]) -> tuple[str, list[str]] | None:
    """A module of this repository and its arguments, or None for other programs. Launchers are left out."""
    if command[0] == "mss-lm":
        return "commands_mss.main", command[1:]
    if command[0] not in LAUNCHERS:
        return None
    for index, token in enumerate(command):
        if token.endswith(".py"):
            return token.removesuffix(".py").replace("/", "."), command[index + 1 :]
        if token == "-m":
            module, arguments = command[index + 1], command[index + 2 :]
            ours = (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
            return (module, arguments) if ours else None
    return None
