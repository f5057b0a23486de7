"""The maximal cost of checking a value against a JSON Schema, measured before the schema is compiled. Pure.

`overlap(depth)` bounds the work at any node of a value of that depth, in units of a cheap keyword (about 4 ns). The
overlap doubles with each level of a `$ref` used twice; in a recursive schema that applies itself twice to the same
member, it doubles with each level of the value. `schema_graph` reads the schema.

- The measurement takes time proportional to the schema; counts saturate.
- The bound ignores short cuts of the library and so never depends on the value's content: a replay decides like the
  first run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from stepflow.errors import Invalid
from stepflow.flow.schema_graph import SCHEMA_TOO_LARGE, SchemaGraph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.flow.schema_graph import SchemaNode

PATTERNS_MAX = 1_000

SATURATED = 10**15

_LEVELS_MAX = 256
_LEVEL_STEPS_MAX = 2_000_000
"""Bound on visited edges while the overlap of a recursive schema is computed; deeper levels count as saturated."""


class ValueSize(NamedTuple):
    """Upper bounds of a value's size. `text_squares`: the sum of length * min(length, `SQUARE_CAP`) over all texts."""

    nodes: int
    chars: int
    text_squares: int
    big_ints: int
    depth: int


SQUARE_CAP = 10_000

_BIG_INT = 1 << 63


def measure_value(tree: Any) -> ValueSize:
    """Measure a value exactly. Names of members count as texts."""
    nodes = chars = squares = big_ints = depth = 0
    level = [tree]
    while level:
        nodes += len(level)
        depth += 1
        below: list[Any] = []
        for node in level:
            kind = type(node)
            if kind is str:
                length = len(node)
                chars += length
                squares += length * min(length, SQUARE_CAP)
            elif kind is dict:
                below.extend(node.values())
                for name in node:
                    length = len(name)
                    chars += length
                    squares += length * min(length, SQUARE_CAP)
            elif kind is list:
                below.extend(node)
            elif kind is int and not -_BIG_INT <= node < _BIG_INT:
                big_ints += 1
        level = below
    return ValueSize(nodes, chars, squares, big_ints, depth - 1)


def size_of_text(length: int) -> ValueSize:
    """Bound the size of a value by the length of its JSON text alone, at the largest depth."""
    return ValueSize(length // 2 + 1, length, length * min(length, SQUARE_CAP), length // 19, _LEVELS_MAX)


@dataclass(slots=True, frozen=True)
class Overlaps:
    """A bound by depth of the value; `by_depth` has the computed part."""

    by_depth: tuple[int, ...]
    is_bounded: bool
    """True if the last bound holds for every greater depth; otherwise deeper values are saturated."""

    def at(self, depth: int) -> int:
        if depth < len(self.by_depth):
            return self.by_depth[depth]
        return self.by_depth[-1] if self.is_bounded else SATURATED

    @property
    def at_any_depth(self) -> int | None:
        return self.by_depth[-1] if self.is_bounded else None


@dataclass(slots=True, frozen=True)
class SchemaCost:
    """The measure of a schema."""

    overlaps: Overlaps
    """Units at one node of a value."""
    text_overlaps: Overlaps
    """Units for each character of a text, for patterns and formats."""
    has_unique_items: bool
    has_alternatives_with_children: bool
    """True if an `anyOf` or `oneOf` can have as many errors as the value has nodes."""

    def units_per_byte(self, *, backtracks: bool) -> int | None:
        """Bound the work per byte of any value; None without such a bound."""
        at_nodes, at_texts = self.overlaps.at_any_depth, self.text_overlaps.at_any_depth
        if at_nodes is None or at_texts is None or self.has_unique_items or (at_texts and backtracks):
            return None
        return at_nodes + at_texts

    def units(self, size: ValueSize, *, backtracks: bool) -> int:
        """Bound the work of a check of a value of the given size."""
        units = self.overlaps.at(size.depth) * (size.nodes + size.chars // 16)
        text_units = self.text_overlaps.at(size.depth)
        if text_units:
            units += text_units * (size.text_squares // 4 if backtracks else size.chars)
        if self.has_unique_items:
            units += 45 * size.big_ints * size.big_ints  # the library hashes all big integers alike
        return units


def measure_schema(schema: Any, pattern_units: Callable[[str], int]) -> SchemaCost:
    """Measure a schema. `pattern_units` returns the cost of a regular expression per character, or raises Invalid.

    Raises:
        Invalid: SCHEMA_TOO_LARGE, or SCHEMA_INVALID for a reference outside the schema.
    """
    graph = SchemaGraph(schema)
    order = graph.in_place_order()
    text_units = [0] * len(graph.nodes)
    seen = 0
    for index, node in enumerate(graph.nodes):
        seen += len(node.patterns)
        if seen > PATTERNS_MAX:
            raise Invalid(SCHEMA_TOO_LARGE, f"the schema has more than {PATTERNS_MAX:,} patterns; leave some out")
        text_units[index] = sum(map(pattern_units, node.patterns)) + graph.format_units[index]

    return SchemaCost(
        _overlaps(graph.nodes, order, [node.units for node in graph.nodes]),
        _overlaps(graph.nodes, order, text_units) if any(text_units) else Overlaps((0,), True),
        graph.has_unique_items,
        graph.has_alternatives_with_children(order),
    )


def _overlaps(nodes: Sequence[SchemaNode], order: Sequence[int], units: Sequence[int]) -> Overlaps:
    """Bound the work at the root (node 0) and below, by depth of the value.

    `order` has in-place targets before their sources. The series is made monotone, and ends where it repeats.
    """
    # 1. The work at a value itself.
    at_value = [0] * len(nodes)
    for index in order:
        node = nodes[index]
        total = units[index] + node.factor * sum(at_value[target] for target in node.in_place)
        at_value[index] = min(total, SATURATED)

    # 2. One level more at a time.
    below = at_value
    series = [at_value[0]]
    steps_per_level = sum(
        1 + len(n.in_place) + len(n.members) + len(n.elements) + len(n.every_member) + len(n.every_element)
        for n in nodes
    )
    steps = 0
    while len(series) <= _LEVELS_MAX:
        steps += steps_per_level
        if len(series) > 1 and (steps > _LEVEL_STEPS_MAX or series[-1] >= SATURATED):
            break

        deeper = [0] * len(nodes)
        for index in order:
            node = nodes[index]
            total = node.factor * sum(deeper[target] for target in node.in_place)
            if node.has_children:
                of_member = max((below[t] for t in node.members), default=0) + sum(below[t] for t in node.every_member)
                of_element = max((below[t] for t in node.elements), default=0)
                of_element += sum(below[t] for t in node.every_element)
                total += max(of_member, of_element)
            deeper[index] = min(total, SATURATED)

        grown = list(map(max, below, deeper))
        if grown == below:
            return Overlaps(tuple(series), True)
        below = grown
        series.append(below[0])
    return Overlaps(tuple(series), False)
