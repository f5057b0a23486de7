"""Lines for people, folded between words to the width of a terminal.

A command keeps its line, so that it works when it is copied: one in backticks is a word, one at the end of a line gets
a line of its own. A word that is too long is left to the terminal.
"""

from __future__ import annotations

import re

COLUMNS_MIN = 40
"""A narrower terminal gets lines for this width."""

_STYLE = re.compile(r"\x1b\[[\d;]*m")
_WORD = re.compile(r" *(?:[^\s`]*`[^`]*`[^\s`]*|\S+)")
_COMMAND = re.compile(r": (stepflow [^`]*)$")
_INDENT = "  "


def fold(text: str, columns: int) -> str:
    """Return a text with its long lines folded."""
    return "\n".join(_fold_line(line, max(columns, COLUMNS_MIN)) for line in text.split("\n"))


def _fold_line(line: str, columns: int) -> str:
    if _width(line) <= columns:
        return line
    command = _COMMAND.search(line)
    head, tail = (line, "") if command is None else (line[: command.start() + 1], command[1])

    below = " " * (len(head) - len(head.lstrip(" "))) + _INDENT
    folded: list[str] = []
    current = ""
    for word in _WORD.findall(head):
        if current.strip() and _width(current + word) > columns:
            folded.append(current)
            current = below + word.lstrip(" ")
        else:
            current += word
    return "\n".join([*folded, *filter(None, [current, tail and below + tail])])


def _width(text: str) -> int:
    return len(_STYLE.sub("", text))


__all__ = ["fold"]
