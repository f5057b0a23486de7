"""The graph of a JSON Schema: its nodes are the reachable subschemas, its edges the keywords between subschemas.

*In-place* edges (`$ref`, `allOf`, `anyOf`, …) stay at the same value, *child* edges (`properties`, `items`, …) lead to
a member or an element. All drafts are read at once: a keyword unknown to the schema's draft only adds edges.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCHEMA_TOO_LARGE = "SCHEMA_TOO_LARGE"

SCHEMA_NODES_MAX = 50_000
"""Members and elements of a schema, which take 0.3 s to compile."""

_IN_PLACE_ONE = ("not", "if", "then", "else")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE_DICTS = ("dependentSchemas", "dependencies")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")

_UNEVALUATED_FACTOR = 4
"""`unevaluated…` runs the in-place subschemas again, to find the covered members; measured 3.3 per level."""

_COMPOUND_ENUM_UNITS = 100
"""Objects and arrays in `enum` are compared one by one; texts and numbers are found by hash."""

_METASCHEMA_UNITS = 200
"""Cost of a reference to a published meta-schema, which the library contains."""

_METASCHEMAS = ("http://json-schema.org/", "https://json-schema.org/")


@dataclass(slots=True)
class SchemaNode:
    """A subschema: the work at its value in `units`, and the indices of other nodes by kind of edge."""

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


class _Document:
    """Possible targets of the references of a schema.

    Resources are found by the last segment of the URI, without base and host. If several share a segment, all are
    targets, which makes the bound larger. Only the library resolves URIs in full.
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
        """Return all possible targets of a reference. Raises: Invalid (no target)."""
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


class SchemaGraph:
    """The reachable subschemas; node 0 is the root."""

    def __init__(self, root: Any) -> None:
        self.nodes: list[SchemaNode] = []
        self.format_units: list[int] = []
        self.has_unique_items = False
        self._document = _Document(root)
        self._index_of: dict[int, int] = {}
        self._todo: list[tuple[dict[str, Any], SchemaNode]] = []
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
            node = SchemaNode()
            self.nodes.append(node)
            self.format_units.append(0)
            if isinstance(tree, dict):
                self._index_of[id(tree)] = index
                self._todo.append((tree, node))
        self._edges += 1
        if self._edges > 4 * SCHEMA_NODES_MAX:  # many references share an anchor
            raise Invalid(SCHEMA_TOO_LARGE, "the schema has too many references; simplify it")
        return index

    def _read(self, tree: dict[str, Any], node: SchemaNode) -> None:
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

    def _read_children(self, node: SchemaNode, keyword: str, value: Any) -> None:
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
