"""What checking a value against a JSON Schema can cost, measured before the schema is compiled. Pure.

A schema is a graph: its nodes are the subschemas that the root reaches, its edges the keywords that apply one subschema
within another. *In-place* edges (`$ref`, `allOf`, `anyOf`, …) stay at the same value, *child* edges (`properties`,
`items`, …) go to a member or an element. `overlap(depth)` bounds how much work falls on any one node of a value of that
depth, in units of one cheap keyword (about 4 ns). It doubles with each level of `$ref` that is used twice, and a
recursive schema that applies itself twice to the same member doubles it with each level of the value.

- The measure itself takes time proportional to the schema; counts saturate.
- The bound ignores short cuts of the library, so it never depends on the value's content, and a replay decides as the
  first run did.
- All drafts are read at once: a keyword that the schema's draft ignores only makes the bound larger.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SCHEMA_TOO_LARGE = "SCHEMA_TOO_LARGE"

SCHEMA_NODES_MAX = 50_000
"""Members and elements of a schema. To compile so many takes 0.3 s."""

PATTERNS_MAX = 1_000

SATURATED = 10**15

_LEVELS_MAX = 256
_LEVEL_STEPS_MAX = 2_000_000
"""Edges looked at while the overlap of a recursive schema is computed; what lies deeper counts as saturated."""

_IN_PLACE_ONE = ("not", "if", "then", "else")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE_DICTS = ("dependentSchemas", "dependencies")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")

_UNEVALUATED_FACTOR = 4
"""`unevaluated…` runs its in-place subschemas again to learn what they covered; measured 3.3 per level."""

_COMPOUND_ENUM_UNITS = 100
"""An object or array in `enum` is compared with one after the other; texts and numbers are found by hash."""

_METASCHEMA_UNITS = 200
"""A reference to a published meta-schema, which the library brings along."""

_METASCHEMAS = ("http://json-schema.org/", "https://json-schema.org/")


class ValueSize(NamedTuple):
    """Upper bounds. `text_squares`: the sum of length * min(length, `SQUARE_CAP`) over all texts."""

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
    """Bound the size of a value by the length of its JSON text, without a look at it. The depth is the largest."""
    return ValueSize(length // 2 + 1, length, length * min(length, SQUARE_CAP), length // 19, _LEVELS_MAX)


@dataclass(slots=True)
class _Node:
    units: int = 1
    in_place: list[int] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    elements: list[int] = field(default_factory=list)
    every_member: list[int] = field(default_factory=list)
    every_element: list[int] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    factor: int = 1
    has_alternatives: bool = False

    @property
    def has_children(self) -> bool:
        return bool(self.members or self.elements or self.every_member or self.every_element)


@dataclass(slots=True, frozen=True)
class Overlaps:
    """A bound that grows with the depth of the value: `by_depth` as far as it was computed."""

    by_depth: tuple[int, ...]
    is_bounded: bool
    """The last one holds for every greater depth; else deeper values are saturated."""

    def at(self, depth: int) -> int:
        if depth < len(self.by_depth):
            return self.by_depth[depth]
        return self.by_depth[-1] if self.is_bounded else SATURATED

    @property
    def at_any_depth(self) -> int | None:
        return self.by_depth[-1] if self.is_bounded else None


@dataclass(slots=True, frozen=True)
class SchemaCost:
    """The measure of one schema."""

    overlaps: Overlaps
    """Units at one node of a value."""
    text_overlaps: Overlaps
    """Units for each character of a text, for patterns and formats."""
    has_unique_items: bool
    has_alternatives_with_children: bool
    """An `anyOf` or `oneOf` whose errors can number as many as its value has nodes."""

    def units_per_byte(self, *, backtracks: bool) -> int | None:
        """Bound the work for each byte of any value; None if there is no such bound."""
        at_nodes, at_texts = self.overlaps.at_any_depth, self.text_overlaps.at_any_depth
        if at_nodes is None or at_texts is None or self.has_unique_items or (at_texts and backtracks):
            return None
        return at_nodes + at_texts

    def units(self, size: ValueSize, *, backtracks: bool) -> int:
        """Bound the work of one check of a value of this size."""
        units = self.overlaps.at(size.depth) * (size.nodes + size.chars // 16)
        text_units = self.text_overlaps.at(size.depth)
        if text_units:
            units += text_units * (size.text_squares // 4 if backtracks else size.chars)
        if self.has_unique_items:
            units += 45 * size.big_ints * size.big_ints  # the library gives all of them the same hash
        return units


def measure_schema(schema: Any, pattern_units: Callable[[str], int]) -> SchemaCost:
    """Measure a schema. `pattern_units` says what a regular expression costs for each character, and may refuse it.

    Raises:
        Invalid: SCHEMA_TOO_LARGE, or SCHEMA_INVALID for a reference to what is not in the schema.
    """
    graph = _Graph(_Document(schema), schema)
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


def _overlaps(nodes: Sequence[_Node], order: Sequence[int], units: Sequence[int]) -> Overlaps:
    """Bound the work at the root (node 0) and below it, by depth of the value.

    `order` has in-place targets before their sources. The series is made monotone, so it can stop where it repeats.
    """
    at_value = [0] * len(nodes)
    for index in order:
        node = nodes[index]
        total = units[index] + node.factor * sum(at_value[target] for target in node.in_place)
        at_value[index] = min(total, SATURATED)

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


class _Document:
    """Where the references of a schema may lead.

    Resources are known by the last segment of their URI, without base and host: of several that share it all are
    meant, which makes the bound larger. Only the library resolves URIs in full.
    """

    def __init__(self, schema: Any) -> None:
        self._resources: dict[str, list[Any]] = {"": [schema]}
        self._anchors: dict[tuple[str, str], list[Any]] = {}
        self._dynamic: dict[str, list[Any]] = {}
        self._base_of: dict[int, str] = {}
        draft = schema.get("$schema") if isinstance(schema, dict) else None
        old = isinstance(draft, str) and ("draft-03" in draft or "draft-04" in draft)
        self._read(schema, "id" if old else "$id")

    def _read(self, schema: Any, id_keyword: str) -> None:
        count = 0
        todo: list[tuple[Any, str]] = [(schema, "")]
        while todo:
            tree, base = todo.pop()
            if isinstance(tree, dict):
                base = self._note(tree, base, id_keyword)
                children: Any = tree.values()
            elif isinstance(tree, list):
                children = tree
            else:
                continue
            count += len(tree)
            if count > SCHEMA_NODES_MAX:
                raise Invalid(
                    SCHEMA_TOO_LARGE, f"the schema has more than {SCHEMA_NODES_MAX:,} members and elements; simplify it"
                )
            todo.extend((child, base) for child in children)

    def _note(self, tree: dict[str, Any], base: str, id_keyword: str) -> str:
        own = tree.get(id_keyword)
        if isinstance(own, str) and own:
            if own.startswith("#"):
                self._anchors.setdefault((base, own[1:]), []).append(tree)
            else:
                base = _last_segment(own)
                self._resources.setdefault(base, []).append(tree)
        self._base_of[id(tree)] = base
        for keyword in ("$anchor", "$dynamicAnchor"):
            name = tree.get(keyword)
            if isinstance(name, str):
                self._anchors.setdefault((base, name), []).append(tree)
                if keyword == "$dynamicAnchor":
                    self._dynamic.setdefault(name, []).append(tree)
        return base

    def targets(self, source: dict[str, Any], keyword: str, reference: str) -> list[Any]:
        """Return all that a reference may mean in this schema. Raises: Invalid (nothing)."""
        if keyword == "$recursiveRef":
            return [root for roots in self._resources.values() for root in roots]
        uri, _, fragment = reference.partition("#")
        fragment = _unquoted(fragment)
        base = _last_segment(uri) if uri else self._base_of.get(id(source), "")
        found = self._within(base, fragment)
        if base and not uri:
            found += self._within("", fragment)
        if keyword == "$dynamicRef":
            found += self._dynamic.get(fragment, [])
        if not found and not reference.startswith(_METASCHEMAS):
            problem = "lies outside the flow; copy it under `schemas.$defs`" if uri else "refers to nothing"
            problem = f"the schema is not a valid JSON Schema: `{reference[:200]}` {problem}"
            raise Invalid("SCHEMA_INVALID", problem)
        return found

    def _within(self, base: str, fragment: str) -> list[Any]:
        roots = self._resources.get(base, [])
        if not fragment:
            return list(roots)
        if not fragment.startswith("/"):
            return list(self._anchors.get((base, fragment), ()))
        return [found for root in roots for found in _at_pointer(root, fragment)]


_QUOTED = re.compile(rb"%([0-9A-Fa-f]{2})")


def _unquoted(text: str) -> str:
    if "%" not in text:
        return text
    raw = _QUOTED.sub(lambda match: bytes((int(match[1], 16),)), text.encode("utf-8", "surrogatepass"))
    return raw.decode("utf-8", "replace")


def _last_segment(uri: str) -> str:
    return _unquoted(uri.partition("#")[0].rpartition("/")[2])


def _at_pointer(tree: Any, pointer: str) -> Iterator[Any]:
    for part in pointer[1:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(tree, dict) and name in tree:
            tree = tree[name]
        elif isinstance(tree, list) and name.isascii() and name.isdigit() and len(name) < 7 and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return
    yield tree


class _Graph:
    """The subschemas that the root reaches; node 0 is the root."""

    def __init__(self, document: _Document, root: Any) -> None:
        self.nodes: list[_Node] = []
        self.format_units: list[int] = []
        self.has_unique_items = False
        self._document = document
        self._index_of: dict[int, int] = {}
        self._todo: list[tuple[dict[str, Any], _Node]] = []
        self._edges = 0
        self._add(root)
        while self._todo:
            tree, node = self._todo.pop()
            self._read(tree, node)

    def in_place_order(self) -> list[int]:
        """Order the nodes with in-place targets first. Raises: Invalid (a node applies itself to the same value)."""
        order: list[int] = []
        state = [0] * len(self.nodes)  # 1: open, 2: done
        for start in range(len(self.nodes)):
            todo = [start]
            while todo:
                index = todo[-1]
                if state[index] == 0:
                    state[index] = 1
                    for target in self.nodes[index].in_place:
                        if state[target] == 1:
                            raise Invalid(
                                "SCHEMA_INVALID",
                                "the schema is not a valid JSON Schema: a `$ref` leads back to itself without "
                                "descending into the value",
                            )
                        if state[target] == 0:
                            todo.append(target)
                    continue
                todo.pop()
                if state[index] == 1:
                    state[index] = 2
                    order.append(index)
        return order

    def has_alternatives_with_children(self, order: Sequence[int]) -> bool:
        with_children = [False] * len(self.nodes)
        for index in order:
            node = self.nodes[index]
            of_targets = any(with_children[target] for target in node.in_place)
            if node.has_alternatives and of_targets:
                return True
            with_children[index] = of_targets or node.has_children
        return False

    def _add(self, tree: Any) -> int:
        index = self._index_of.get(id(tree)) if isinstance(tree, dict) else None
        if index is None:
            index = len(self.nodes)
            node = _Node()
            self.nodes.append(node)
            self.format_units.append(0)
            if isinstance(tree, dict):
                self._index_of[id(tree)] = index
                self._todo.append((tree, node))
        self._edges += 1
        if self._edges > 4 * SCHEMA_NODES_MAX:  # anchors that many references share
            raise Invalid(SCHEMA_TOO_LARGE, "the schema has too many references; simplify it")
        return index

    def _read(self, tree: dict[str, Any], node: _Node) -> None:
        for keyword, value in tree.items():
            node.units += _keyword_units(keyword, value)
            if keyword in _REFERENCES and isinstance(value, str):
                node.in_place += map(self._add, self._document.targets(tree, keyword, value))
                node.units += _METASCHEMA_UNITS if value.startswith(_METASCHEMAS) else 0
            elif keyword in _IN_PLACE_ONE:
                node.in_place.append(self._add(value))
            elif keyword in _IN_PLACE_LISTS:
                node.in_place += map(self._add, _elements(value))
                node.has_alternatives |= keyword != "allOf"
            elif keyword in _IN_PLACE_DICTS:
                node.in_place += [self._add(child) for child in _members(value).values() if not isinstance(child, list)]
            else:
                self._read_children(node, keyword, value)
        if not tree.keys().isdisjoint(_UNEVALUATED):
            node.factor = _UNEVALUATED_FACTOR
        if isinstance(tree.get("pattern"), str):
            node.patterns.append(tree["pattern"])
        if "format" in tree:
            self.format_units[self._index_of[id(tree)]] = 8
        self.has_unique_items |= tree.get("uniqueItems") is True

    def _read_children(self, node: _Node, keyword: str, value: Any) -> None:
        match keyword:
            case "properties":
                node.members += map(self._add, _members(value).values())
            case "patternProperties":
                node.every_member += map(self._add, _members(value).values())
                node.patterns += list(_members(value))
            case "additionalProperties":
                node.members.append(self._add(value))
            case "unevaluatedProperties" | "propertyNames":
                node.every_member.append(self._add(value))
            case "items" | "prefixItems" | "additionalItems":
                node.elements += map(self._add, value if isinstance(value, list) else (value,))
            case "unevaluatedItems" | "contains":
                node.every_element.append(self._add(value))


def _keyword_units(keyword: str, value: Any) -> int:
    if keyword == "enum":
        return 1 + sum(
            _COMPOUND_ENUM_UNITS + _size(option) for option in _elements(value) if isinstance(option, (dict, list))
        )
    if keyword == "const":
        return _size(value)
    return 1 + len(value) if isinstance(value, (dict, list)) else 1


def _size(tree: Any) -> int:
    count, todo = 0, [tree]
    while todo:
        node = todo.pop()
        count += 1
        if isinstance(node, dict):
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    return count


def _elements(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _members(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
