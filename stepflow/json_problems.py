"""Values in JSON texts that no tree holds, with their places; and how places are spelled for people.

A number with a fraction or an exponent becomes a double: some would become infinite, others zero. A string may hold
half of a surrogate pair, which has no UTF-8. The decoder's message names no place, so a second, slower reading finds
the place. Pure.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

Part = str | int
"""A key or an index."""

NAME_SHOWN_CHARS_MAX = 80
"""Longer names of users are shortened in messages."""


class Lost(NamedTuple):
    """The first value of a text that no tree holds."""

    path: tuple[Part, ...]
    problem: str


class _Number(str):
    """A number with a fraction or an exponent, as written."""

    __slots__ = ()


_TINY = re.compile(r"[eE]-[0-9]{3}|\.0{200}")
_TINY_BYTES = re.compile(_TINY.pattern.encode())
_HALF = re.compile("[\ud800-\udfff]")


def may_vanish(text: bytes | str) -> bool:
    """Return False if no number of the text becomes zero as a double: the least double is 4.9e-324."""
    return (_TINY.search(text) if isinstance(text, str) else _TINY_BYTES.search(text)) is not None


def vanishes(number: str) -> bool:
    """Return True if the decimal number is not zero, and its double is."""
    return float(number) == 0 and any(digit in "123456789" for digit in number.lower().partition("e")[0])


def first_lost(text: bytes | str) -> Lost | None:
    """Return the first value of the text that no tree holds; None if there is none, or if the text is malformed."""
    import json  # only for errors; not at the start of every command

    try:
        tree = json.loads(text, parse_float=_Number, parse_int=len)
    except (ValueError, RecursionError):
        return None

    waiting: list[tuple[tuple[Part, ...], Any]] = [((), tree)]
    while waiting:
        path, node = waiting.pop()
        problem = _problem(node)
        if problem:
            return Lost(path, problem)
        if isinstance(node, dict):
            waiting.extend(reversed([((*path, name), below) for name, below in node.items()]))
        elif isinstance(node, list):
            waiting.extend(reversed([((*path, index), below) for index, below in enumerate(node)]))
    return None


def _problem(node: Any) -> str:
    """Return the problem of a value, without the values inside it; the empty text if there is none."""
    if isinstance(node, _Number):
        if float(node) in (float("inf"), float("-inf")):
            return f"{shown(node)} is beyond the range of a double; write it as a string"
        if vanishes(node):
            return f"{shown(node)} is so small that its double is 0; write it as a string"
    elif isinstance(node, str) and _HALF.search(node):
        return "the string holds half of a surrogate pair"
    elif isinstance(node, dict) and any(_HALF.search(name) for name in node):
        return "the name of a member holds half of a surrogate pair"
    return ""


def shown(name: str) -> str:
    """Shorten a user's name for use in a message."""
    return name if len(name) <= NAME_SHOWN_CHARS_MAX else name[: NAME_SHOWN_CHARS_MAX - 1] + "…"


def json_path(parts: tuple[Part, ...]) -> str:
    """Spell a document path as diagnostics do: `$.steps[0].input["a.b"]`."""
    spelled = (f"[{part}]" if isinstance(part, int) else _spell_key(part) for part in parts)
    return "$" + "".join(spelled)


def _spell_key(name: str) -> str:
    name = shown(name)
    return f'["{name}"]' if any(mark in name for mark in ".[]") else f".{name}"


__all__ = ["NAME_SHOWN_CHARS_MAX", "Lost", "Part", "first_lost", "json_path", "may_vanish", "shown", "vanishes"]
