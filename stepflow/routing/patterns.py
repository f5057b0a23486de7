"""The path patterns of a plugin's components: `/add`, `/core/{name}`, `/core/{*rest}`.

Literal segments beat parameters, and parameters beat a wildcard, segment by segment from the left. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


class _Leaf(msgspec.Struct, frozen=True):
    """End of a pattern: its component, and the names of its parameters from left to right."""

    component: str
    names: tuple[str, ...]


class _Branch(msgspec.Struct):
    """The continuations after a segment. Parameters share a branch regardless of their names; otherwise a pattern with
    another name would hide a stronger pattern."""

    literals: dict[str, _Branch] = msgspec.field(default_factory=dict)
    parameter: _Branch | None = None
    wildcard: _Leaf | None = None
    leaf: _Leaf | None = None


class PatternMatcher:
    """Matches paths against the patterns of one plugin; the first of equal patterns wins."""

    def __init__(self, components: Iterable[tuple[str, str]], *, complete: bool) -> None:
        self._complete = complete
        self._exact: dict[str, str] = {}
        self._root = _Branch()
        self._has_patterns = False
        for component, pattern in components:
            if "{" in pattern:
                self._has_patterns = True
                self._insert(component, pattern)
            else:
                self._exact.setdefault(pattern, component)

    def match(self, remainder: str) -> tuple[str, dict[str, str]] | None:
        """Return component id and path parameters; None without a match."""
        component = self._exact.get(remainder)
        if component is not None:
            return component, {}
        if self._has_patterns:
            match = _descend(self._root, remainder.split("/")[1:], 0)
            if match is not None:
                leaf, values = match
                return leaf.component, dict(zip(leaf.names, values, strict=True))
        if self._complete or remainder == "/":
            return None
        return remainder, {}

    def _insert(self, component: str, pattern: str) -> None:
        branch = self._root
        names: list[str] = []
        segments = pattern.split("/")[1:]
        for index, segment in enumerate(segments):
            if segment.startswith("{*") and segment.endswith("}") and index == len(segments) - 1:
                branch.wildcard = branch.wildcard or _Leaf(component, (*names, segment[2:-1]))
                return
            if segment.startswith("{") and segment.endswith("}"):
                names.append(segment[1:-1])
                branch.parameter = branch = branch.parameter or _Branch()
            else:
                branch = branch.literals.setdefault(segment, _Branch())
        branch.leaf = branch.leaf or _Leaf(component, tuple(names))


def _descend(branch: _Branch, segments: list[str], index: int) -> tuple[_Leaf, tuple[str, ...]] | None:
    """Match the segments from `index` on; a dead end falls back to the next weaker kind.

    Return the leaf and the values of its parameters.
    """
    if index == len(segments):
        return None if branch.leaf is None else (branch.leaf, ())

    segment = segments[index]
    literal = branch.literals.get(segment)
    match = None if literal is None else _descend(literal, segments, index + 1)
    if match is None and segment and branch.parameter is not None:
        below = _descend(branch.parameter, segments, index + 1)
        match = None if below is None else (below[0], (segment, *below[1]))
    if match is None and branch.wildcard is not None:
        rest = "/".join(segments[index:])
        match = (branch.wildcard, (rest,)) if rest else None
    return match
