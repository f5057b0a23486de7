"""JSON on the wire and in the journal: compact UTF-8 text, checked once on entry.

Invariants of each text returned by `compact`:
- one line, no insignificant white space (a newline spliced into a line protocol would inject a message);
- members in the author's order, the last of equal names; integers exact at any size;
- a number with a fraction or an exponent is the nearest double, in the shortest form that reads back the same (1.10 is
  1.1, 1E2 is 100.0); one beyond the range of doubles, or so small that zero would be left of it, is refused;
- no lone surrogates, nesting at most `JSON_DEPTH_MAX`.

Pure. Content ids (`blob_id`) are the SHA-256 of such texts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from stepflow.errors import Invalid
from stepflow.json_problems import first_lost, json_path, may_vanish

JSON_DEPTH_MAX = 256
"""Nesting; far below the limits of decoders, far above hand-written values."""

INLINE_BYTES_MAX = 32 * 1024
"""Larger values are moved to the blob store and referenced by id."""

PAYLOAD_BYTES_MAX = 16 * 1024 * 1024
"""Every API rejects larger payloads."""

RESULT_BYTES_MAX = 1024 * 1024 * 1024
"""A larger result of a run fails. Results above `PAYLOAD_BYTES_MAX` are kept in parts and streamed."""

assert INLINE_BYTES_MAX * 4 < PAYLOAD_BYTES_MAX

encode = msgspec.json.encode
"""Encode a tree (it may hold `msgspec.Raw` leaves) as compact JSON."""

decode = msgspec.json.decode
"""Decode a JSON text that has been checked."""


def compact(text: bytes | str, *, what: str = "value", bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
    """Check an untrusted JSON text and return its compact form.

    Raises:
        Invalid: not JSON, too large or too deep; `what` names it in the message.
    """
    checked = encode(_tree(text, what, bytes_max))
    if b"0.0" in checked:
        _refuse_vanished(text, what)
    return checked


def parse(text: bytes | str, *, what: str = "value", bytes_max: int = PAYLOAD_BYTES_MAX) -> Any:
    """Check an untrusted JSON text and return its tree. Raises: as `compact`."""
    tree = _tree(text, what, bytes_max)
    _refuse_vanished(text, what)
    return tree


def _tree(text: bytes | str, what: str, bytes_max: int) -> Any:
    size = len(text)
    if size > bytes_max:
        raise Invalid(
            "PAYLOAD_TOO_LARGE", f"{what} is {size:,} bytes; the limit is {bytes_max:,}", size=size, bytes_max=bytes_max
        )
    try:
        tree = decode(text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _invalid(text, what, str(error)) from None
    except RecursionError:
        raise _too_deep(what) from None

    # Cheaper than a walk of every tree: only many brackets can nest deeply.
    opening = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if text.count(opening[0]) + text.count(opening[1]) > JSON_DEPTH_MAX:  # type: ignore[arg-type]  # bytes count bytes
        check_depth(tree, what)
    return tree


def _refuse_vanished(text: bytes | str, what: str) -> None:
    """Refuse a well-formed text with a number that became zero. Raises: Invalid."""
    if may_vanish(text) and first_lost(text) is not None:
        raise _invalid(text, what, "")


def _invalid(text: bytes | str, what: str, problem: str) -> Invalid:
    """Return the error for a text: the place of a value that no tree holds, or else the decoder's `problem`."""
    lost = first_lost(text)
    if lost is None:
        return Invalid("JSON_INVALID", f"{what} is not valid JSON: {problem}")
    place = json_path(lost.path)
    return Invalid("JSON_INVALID", f"{what} is not valid JSON: {place}: {lost.problem}", path=place)


def composed_problem(text: bytes) -> str | None:
    """Return the problem of a text composed of checked parts, too large or too deep in total; None if there is none."""
    if len(text) > PAYLOAD_BYTES_MAX:
        return f"it is {len(text):,} bytes; the limit is {PAYLOAD_BYTES_MAX:,}"
    if text.count(b"[") + text.count(b"{") > JSON_DEPTH_MAX:
        try:
            check_depth(decode(text))
        except (Invalid, RecursionError):
            return f"it is nested deeper than {JSON_DEPTH_MAX} levels"
    return None


def depth_of(tree: Any) -> int:
    """Return the levels of nesting of a tree, 0 for a plain value."""
    depth = 0
    level = [tree]
    while level := [node for node in level if isinstance(node, (dict, list))]:
        depth += 1
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return depth


def check_depth(tree: Any, what: str = "value", depth_max: int = JSON_DEPTH_MAX) -> None:
    """Refuse a tree nested deeper than `depth_max`. Raises: Invalid."""
    level = [tree]
    for _ in range(depth_max):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below.extend(child for child in node.values() if isinstance(child, (dict, list)))
            elif isinstance(node, list):
                below.extend(child for child in node if isinstance(child, (dict, list)))
        if not below:
            return
        level = below
    raise _too_deep(what, depth_max)


def _too_deep(what: str, depth_max: int = JSON_DEPTH_MAX) -> Invalid:
    return Invalid("JSON_TOO_DEEP", f"{what} is nested deeper than {depth_max} levels", depth_max=depth_max)


def blob_id(content: bytes) -> str:
    """Return the blob id of `content`: its SHA-256, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


class Json:
    """A checked JSON text with its tree, decoded on first use. The tree is shared: do not change it."""

    __slots__ = ("_tree", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._tree: Any = _UNDECODED

    @property
    def tree(self) -> Any:
        tree = self._tree
        if tree is _UNDECODED:
            tree = self._tree = decode(self.raw)
        return tree

    @property
    def size(self) -> int:
        """Length of the text, also where `raw` is not loaded; 0 if unknown."""
        return len(self.raw)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.raw[:40]!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Json) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)


@dataclass(frozen=True, slots=True)
class LargeJson:
    """Stands for a JSON text that is not in memory, because it may exceed `PAYLOAD_BYTES_MAX`."""

    text_bytes: int
    """Length of the text."""


_UNDECODED: Any = object()
