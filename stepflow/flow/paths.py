"""Paths into JSON values, as `path`, `$input`, `$variable` and route conditions use.

`$.user.name`, `$.items[0]`, `$["a.b"]`; a bare text such as `user.name` is read with `$.` before it; the empty text
is the whole value. Promises:
- `parse_path(path.text) == path` for every path: keys unsuitable after a dot are written in brackets;
- names reach into objects only, indices into arrays only, and no value is created or defaulted.

Limits: no negative indices, slices, wildcards or filters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from stepflow.errors import Invalid
from stepflow.json_problems import NAME_SHOWN_CHARS_MAX, Part, shown

MISSING: Final[Any] = type("Missing", (), {"__repr__": lambda _: "MISSING", "__slots__": ()})()
"""Result of a projection whose path does not exist; null is a value, not missing."""

INDEX_DIGITS_MAX = 9
"""An index with more digits cannot exist within the size limit of a value."""


@dataclass(frozen=True, slots=True)
class Path:
    """A parsed path; `text` is its normalised spelling, `$` for the whole value."""

    parts: tuple[Part, ...] = ()
    text: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        text = "$" + "".join(_spell(part) for part in self.parts)
        # A final dot means nothing, and protects a blank before it from being trimmed.
        object.__setattr__(self, "text", text if text == text.rstrip() else text + ".")

    def __str__(self) -> str:
        return self.text

    def project(self, tree: Any) -> Any:
        """Return the value at this path within `tree`, or `MISSING`."""
        return project(tree, self.parts)


def project(tree: Any, parts: tuple[Part, ...]) -> Any:
    """Return the value at `parts` within `tree`, or `MISSING`."""
    for part in parts:
        if part.__class__ is str:
            if tree.__class__ is not dict:
                return MISSING
            tree = tree.get(part, MISSING)
            if tree is MISSING:
                return MISSING
        else:
            index: Any = part
            if tree.__class__ is not list or index >= len(tree):
                return MISSING
            tree = tree[index]
    return tree


def parse_path(text: str) -> Path:
    """Read a path.

    Raises:
        Invalid: PATH_INVALID; the message names the column.
    """
    trimmed = text.strip()
    if trimmed.startswith("$"):
        return Path(_parts(trimmed, 1, trimmed))
    if not text:
        return Path()
    return Path(_parts("." + text, 0, text))


_INDEX = re.compile(r"\s*([0-9]+)\s*\]")
_QUOTED = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)")\s*\]""")
_NAME = re.compile(r"[^.\[]*")


def _parts(text: str, start: int, original: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    at = start
    while at < len(text):
        if text[at] == ".":
            name = _NAME.match(text, at + 1)
            assert name  # it matches the empty text
            if name.group():  # `$..a` and `$.a.` have empty names, which mean nothing
                parts.append(name.group())
            at = name.end()
        elif text[at] == "[":
            part, at = _bracket(text, at, original)
            parts.append(part)
        else:
            raise _invalid(original, f"expected `.` or `[` instead of `{text[at]}`", _hint(original))
    return tuple(parts)


def _bracket(text: str, at: int, original: str) -> tuple[Part, int]:
    if found := _INDEX.match(text, at + 1):
        digits = found[1].lstrip("0") or "0"
        if len(digits) > INDEX_DIGITS_MAX:
            raise _invalid(original, f"index {digits[:12]}… is larger than any array")
        return int(digits), found.end()
    if found := _QUOTED.match(text, at + 1):
        return found[1] if found[1] is not None else found[2], found.end()
    raise _invalid(original, "brackets hold an index from 0 on or a quoted key", 'write `[0]` or `["key"]`')


def _hint(original: str) -> str:
    if len(original) <= NAME_SHOWN_CHARS_MAX and original[1:2].isalnum():
        return f'write `$.{original[1:]}`, or `$["{original}"]` for a key that begins with a dollar sign'
    return ""


def _invalid(text: str, problem: str, hint: str = "") -> Invalid:
    return Invalid("PATH_INVALID", f"path `{shown(text)}`: {problem}" + (f"; {hint}" if hint else ""))


def _spell(part: Part) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    plain = part and part[0] != "$" and part == part.strip() and not any(mark in part for mark in ".[]'\"")
    if plain or ("'" in part and '"' in part):
        # A key with both kinds of quotes can only have followed a dot: brackets cannot hold it.
        return "." + part
    quote = "'" if '"' in part else '"'
    return f"[{quote}{part}{quote}]"
