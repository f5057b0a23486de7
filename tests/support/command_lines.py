"""Command lines of stepflow: in texts of the code, in the help and in the documents; and their parsing."""

from __future__ import annotations

import ast
import re
import shlex
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import typer

from stepflow.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLACEHOLDERS = {
    "run_id": "01a2316b-a1cc-7004-ada1-306e561b9e69",
    "option": "",
    "argument": "flow.yaml",
    "flow": "flow.yaml",
    "server": "localhost:7840",
    "port": "7840",
    "item": "0",
    "elsewhere": "",
}
"""Last name of an expression in a text → what a user sees in its place; every other one is `x`."""

STARTS = re.compile(r"\bstepflow (?=[a-z]+\b)")


def parse(words: list[str]) -> tuple[Any, Any]:
    """Return the command of a command line (without `stepflow`), and its context. Raises: the parser's errors.

    No file that it names is read.
    """
    command, rest, path = typer.main.get_command(app), words, ["stepflow"]
    while commands := getattr(command, "commands", None):
        name, *rest = rest
        assert name in commands, f"there is no command {' '.join(path)} {name}"
        command = commands[name]
        path.append(name)
    with patch("stepflow.cli.env_file.apply_env_file"):
        return command, command.make_context(" ".join(path), list(rest))


def former_words(words: list[str]) -> list[str]:
    """Return the words of a command line that the help does not show."""
    command, hidden = typer.main.get_command(app), []
    for word in words:
        commands = getattr(command, "commands", None)
        if not commands:
            break
        command = commands[word]
        hidden += [word] if command.hidden else []
    known = [each for each in command.params if not getattr(each, "hidden", False)]
    shown = {name for each in known for name in (*each.opts, *each.secondary_opts)}
    options = [word.partition("=")[0] for word in words if re.match("--?[a-z]", word)]
    return hidden + [word for word in options if word not in {*shown, "--help", "-h"}]


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a module as users see them, with placeholders for computed parts; no docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {
        id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(_shown(part) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            yield node.value


def _shown(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    if isinstance(part.value, ast.Call):
        name = ast.unparse(part.value.func).rpartition(".")[2]
        return "" if name.endswith(("_option", "_argument")) else "7850" if name == "free_port" else "x"
    return PLACEHOLDERS.get(re.split(r"[.\[]", ast.unparse(part.value))[-1].rstrip("]"), "x")


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the words of the command lines in a text, without `stepflow`: up to a backtick, or to the end."""
    for start in STARTS.finditer(text):
        line = text[start.end() :]
        end = line.find("`") if text[: start.start()].endswith("`") else first_end(line)
        yield shlex.split(line[:end].rstrip(" ."), comments=True)


def first_end(line: str) -> int:
    """Return where a command line without backticks ends: at the line's end, a pipe, a redirection, or a remark."""
    found = re.search(r"\n|   \(|\s[|&>]|\s2>", line)
    return len(line) if found is None else found.start()
