"""Texts of others made safe for a terminal: control characters are shown as escapes instead of being obeyed.

A component's description, the id of a peer or the last words of a server may move the cursor, change the title of the
window, hide what follows, or reverse its direction. Pure.
"""

from __future__ import annotations

import re

_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
"""C0 without tab and line feed, delete, C1."""

_INVISIBLE = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""Marks that change the direction of text, separators of lines, halves of surrogate pairs."""

_UNSAFE = re.compile(f"[{_CONTROLS}{_INVISIBLE}]")
_UNSAFE_IN_A_LINE = re.compile(f"[\t\n{_CONTROLS}{_INVISIBLE}]")


def printable(text: str, *, one_line: bool = False) -> str:
    """Return the text with unsafe characters as escapes (`\\x1b`, `\\u202e`); with `one_line`, `\\n` and `\\t` too."""
    return (_UNSAFE_IN_A_LINE if one_line else _UNSAFE).sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


__all__ = ["printable"]
