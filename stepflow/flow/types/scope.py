"""Schemas as types over one table of definitions, and the parts of a type.

`adopt` copies a schema: local references (`#/$defs/…`, `#/definitions/…`, any pointer, `#`) become references to the
table of the scope, where names stay unless two schemas use one name for different definitions.

Limits: a reference outside the schema, an anchor, and a schema with an `$id` inside are *any*. Keywords about values
(`pattern`, `format`) are kept, and not interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from stepflow.flow.types.make import ANNOTATIONS, ANY, NEVER, NULL, is_any, is_small, union

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepflow.json_problems import Part

ALTERNATIVES_MAX = 64
"""Alternatives of one type; a type with more is *any*."""

DEFINITIONS_MAX = 2_000
"""Definitions of one analysis; references to further ones are *any*."""

WORK_MAX = 50_000
WORK_PER_STEP = 500
"""Units of work of one analysis, and more for each step of the flow; a unit takes 5 to 20 µs. Without any left, all
further types are *any*."""

_DEPTH_MAX = 40
"""References and alternatives inside each other."""

_COPY_DEPTH_MAX = 150
"""Levels of an adopted schema, with its references followed; deeper ones are *any*."""

_ONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "dependentSchemas")
_DROPPED = ("$schema", "$id", "$defs", "definitions", "$anchor", "$dynamicAnchor", "$comment", "id")
_OLD_DRAFTS = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")
PREFIX = "#/$defs/"


class Projection(NamedTuple):
    """The type at the end of a path.

    `missing` is the number of parts that exist if the path cannot exist, else None. `is_certain`: the schema is closed
    there, or no object or list. `known`: names of members at the first missing part.
    """

    type: Any
    missing: int | None = None
    is_certain: bool = False
    known: tuple[str, ...] = ()


class TypeScope:
    """Definitions by name."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._work_left = WORK_MAX
        self._adopted: dict[tuple[int, int], tuple[Any, Any, Any]] = {}
        self._shared_names: dict[int, dict[str, str]] = {}

    def adopt(self, schema: Any, definitions: Mapping[str, Any] | None = None) -> Any:
        """Return a schema as a type of this scope. `definitions` complete its own `$defs`."""
        key = (id(schema), id(definitions))
        known = self._adopted.get(key)
        if known is None:
            names = self._shared_names.setdefault(id(definitions), {}) if definitions else {}
            type_ = _Adoption(self, schema, definitions or {}, names).run() if is_small(schema) else ANY
            # The schema is kept: its id must not be used again.
            known = self._adopted[key] = (schema, definitions, type_)
        return known[2]

    def define(self, name: str) -> str:
        """Reserve a name for a definition that follows, and return it: `name`, or with a number if it is taken."""
        taken, number = name, 2
        while taken in self.definitions:
            taken, number = f"{name}_{number}", number + 1
        self.definitions[taken] = ANY
        return taken

    def allow(self, units: int) -> None:
        """Add to the work that may be spent."""
        self._work_left += units

    def spend(self) -> bool:
        """Count a unit of work, and return False if none is left."""
        self._work_left -= 1
        return self._work_left >= 0

    def target(self, type_: Any) -> Any:
        """Follow the `$ref` of a type; other types are returned unchanged."""
        for _ in range(_DEPTH_MAX):
            reference = type_.get("$ref") if isinstance(type_, dict) else None
            if reference is None:
                return type_
            type_ = self.definitions.get(reference.removeprefix(PREFIX), ANY)
        return ANY

    def alternatives(self, type_: Any) -> list[Any]:
        """Split a type at `anyOf`, `oneOf` and type lists, with references followed and `allOf` merged.

        No alternative is *never*. A type that cannot be split is *any*.
        """
        found: list[Any] = []
        self._split(type_, found, 0)
        return [ANY] if any(map(is_any, found)) or len(found) > ALTERNATIVES_MAX else found

    def _split(self, type_: Any, found: list[Any], depth: int) -> None:
        type_ = self.target(type_)
        if depth > _DEPTH_MAX or len(found) > ALTERNATIVES_MAX or is_any(type_) or not self.spend():
            found.append(ANY)
            return
        if type_ is NEVER:
            return

        for keyword in ("anyOf", "oneOf"):
            if keyword in type_:
                rest = {key: value for key, value in type_.items() if key != keyword and key not in ANNOTATIONS}
                for option in type_[keyword]:
                    self._split({"allOf": [option, rest]} if rest else option, found, depth + 1)
                return

        if "allOf" in type_:
            merged = self._merged(type_, depth)
            if "allOf" in merged:
                found.append(ANY)
            else:
                self._split(merged, found, depth + 1)
        elif isinstance(type_.get("type"), list):
            for name in type_["type"]:
                self._split({**type_, "type": name}, found, depth + 1)
        elif "type" not in type_ and ("const" in type_ or "enum" in type_):
            values = type_["enum"] if "enum" in type_ else [type_["const"]]
            found += [{"type": _name_of(value), "const": value} for value in values[: ALTERNATIVES_MAX + 1]]
        else:
            found.append(type_ if isinstance(type_.get("type"), str) else _with_type(type_))

    def _merged(self, type_: dict[str, Any], depth: int) -> dict[str, Any]:
        """Return the conjunction of the parts of an `allOf`; with `allOf` left in it if it cannot be told."""
        parts = [self.target(part) for part in type_["allOf"]]
        parts.append({key: value for key, value in type_.items() if key != "allOf" and key not in ANNOTATIONS})
        alternatives = [part for part in parts if isinstance(part, dict) and ("anyOf" in part or "oneOf" in part)]
        nested = [part for part in parts if isinstance(part, dict) and "allOf" in part]

        if any(part is NEVER for part in parts) or depth > _DEPTH_MAX or not self.spend():
            return type_
        if nested:
            inner = [
                self._merged(part, depth + 1) if isinstance(part, dict) and "allOf" in part else part for part in parts
            ]
            return type_ if any("allOf" in part for part in inner if isinstance(part, dict)) else {"allOf": inner}
        if alternatives:
            if len(alternatives) > 1:
                return type_
            (one,) = alternatives
            keyword = "anyOf" if "anyOf" in one else "oneOf"
            rest = [part for part in parts if part is not one and not is_any(part)]
            rest.append({key: value for key, value in one.items() if key != keyword})
            return {keyword: [{"allOf": [option, *[part for part in rest if part]]} for option in one[keyword]]}

        merged: dict[str, Any] = {}
        for part in parts:
            if not is_any(part):
                joined = _both(merged, part)
                if joined is None:
                    return type_
                merged = joined
        return merged

    def project(self, type_: Any, parts: Iterable[Part], *, null_stays: bool = False) -> Projection:
        """Return the type at a path. `null_stays`: null at the root is null at every path, as in a step's output."""
        roots = self.alternatives(type_)
        has_null = null_stays and any(not is_any(root) and root.get("type") == "null" for root in roots)
        if has_null and len(roots) == 1:
            return Projection(NULL)

        current = type_
        for count, part in enumerate(parts):
            step = self._member(current, part)
            if step.missing is not None:
                if has_null:
                    # The other alternatives may never occur; the null does.
                    return Projection(ANY, count, False, step.known)
                return step._replace(missing=count)
            current = step.type
        return Projection(union([current, NULL]) if has_null else current)

    def elements(self, type_: Any) -> Any:
        """Return the type of all items of a list; *any* for a type that need not be a list."""
        found: list[Any] = []
        for option in self.alternatives(type_):
            if is_any(option) or option["type"] != "array":
                return ANY
            found += [*option.get("prefixItems", ()), option.get("items", ANY)]
        return union(found)

    def _member(self, type_: Any, part: Part) -> Projection:
        found: list[Any] = []
        missing: list[Projection] = []
        for option in self.alternatives(type_):
            one = _member_of(option, part)
            (found if one.missing is None else missing).append(one.type if one.missing is None else one)
        if found or not missing:
            return Projection(union(found) if found else ANY)
        known = tuple(dict.fromkeys(name for one in missing for name in one.known))
        return Projection(ANY, 0, all(one.is_certain for one in missing), known)


def _member_of(option: Any, part: Part) -> Projection:
    if is_any(option):
        return Projection(ANY)

    kind = option.get("type")
    if isinstance(part, str):
        if kind != "object":
            return Projection(ANY, 0, True)
        properties = option.get("properties", {})
        if part in properties:
            return Projection(properties[part])
        if not is_plain(option):
            return Projection(ANY)
        others = option.get("additionalProperties")
        if others is NEVER:
            return Projection(ANY, 0, True, tuple(properties))
        if others is not None or not properties:
            return Projection(ANY if others is None else others)
        return Projection(ANY, 0, False, tuple(properties))

    if kind != "array":
        return Projection(ANY, 0, True)
    prefix = option.get("prefixItems", [])
    if part < len(prefix):
        return Projection(prefix[part])
    others = option.get("items", ANY)
    return Projection(ANY, 0, True) if others is NEVER else Projection(others)


_CONDITIONAL = ("patternProperties", "if", "dependentSchemas", "unevaluatedProperties", "dependencies", "not")


def is_plain(option: dict[str, Any]) -> bool:
    """Return True if `properties` and `additionalProperties` alone tell the members of an object."""
    return not any(keyword in option for keyword in _CONDITIONAL)


def _name_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def _with_type(type_: dict[str, Any]) -> Any:
    """Return a type without `type` as an object if it has members; it is *any* otherwise."""
    if "properties" in type_ or "required" in type_:
        # Values of other types fit such a schema, too. As the type of a value, an object is meant.
        return {"type": "object", **type_}
    return ANY


def _both(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any] | None:
    """Return the conjunction of two types without alternatives; None if it cannot be told."""
    joined = dict(left)
    for keyword, value in right.items():
        if keyword not in joined or joined[keyword] == value or keyword in ANNOTATIONS:
            joined.setdefault(keyword, value)
        elif keyword == "properties":
            joined[keyword] = {
                **joined[keyword],
                **{
                    name: {"allOf": [joined[keyword][name], member]} if name in joined[keyword] else member
                    for name, member in value.items()
                },
            }
        elif keyword == "required":
            joined[keyword] = [*joined[keyword], *[name for name in value if name not in joined[keyword]]]
        elif keyword == "type" and {_key(joined[keyword]), _key(value)} == {"integer", "number"}:
            joined[keyword] = "integer"
        else:
            return None
    return joined


def _key(value: Any) -> Any:
    return value if isinstance(value, str) else None


class _Adoption:
    """One schema on its way into a scope."""

    def __init__(self, scope: TypeScope, schema: Any, definitions: Mapping[str, Any], shared: dict[str, str]) -> None:
        """Take a schema. `shared`: names in the scope of the references to `definitions`, kept between schemas."""
        self._scope = scope
        own = schema.get("$defs") if isinstance(schema, dict) else None
        if definitions and isinstance(schema, dict):
            schema = {**schema, "$defs": {**definitions, **(own if isinstance(own, dict) else {})}}
        self._root = schema
        self._shared = {} if isinstance(own, dict) else shared
        self._own: dict[str, str] = {}
        self._depth = 0
        draft = schema.get("$schema") if isinstance(schema, dict) else None
        self._is_old = isinstance(draft, str) and any(old in draft for old in _OLD_DRAFTS)

    def run(self) -> Any:
        return self._copy(self._root)

    def _copy(self, schema: Any) -> Any:
        if isinstance(schema, bool):
            return schema
        if self._depth > _COPY_DEPTH_MAX:
            return ANY

        self._depth += 1
        try:
            return self._copy_object(schema)
        finally:
            self._depth -= 1

    def _copy_object(self, schema: Any) -> Any:
        if not isinstance(schema, dict) or (schema is not self._root and isinstance(schema.get("$id"), str)):
            return ANY
        if any(keyword in schema for keyword in ("$dynamicRef", "$recursiveRef")):
            return ANY

        copied: dict[str, Any] = {}
        for keyword, value in schema.items():
            self._copy_keyword(keyword, value, copied)

        reference = schema.get("$ref")
        if reference is None:
            return copied
        target = self._reference(reference)
        if target is None:
            return ANY
        if self._is_old or not copied.keys() - ANNOTATIONS:
            return {"$ref": PREFIX + target, **{key: value for key, value in copied.items() if key in ANNOTATIONS}}
        return {"allOf": [{"$ref": PREFIX + target}, copied]}

    def _copy_keyword(self, keyword: str, value: Any, copied: dict[str, Any]) -> None:
        """Copy a well-formed keyword; others do not tell anything."""
        if keyword in _DROPPED or keyword == "$ref":
            return
        if keyword in _MAPS:
            if isinstance(value, dict):
                copied[keyword] = {name: self._copy(member) for name, member in value.items()}
        elif keyword in _LISTS:
            if isinstance(value, list) and value:
                copied[keyword] = [self._copy(option) for option in value]
        elif keyword == "items" and isinstance(value, list):
            copied["prefixItems"] = [self._copy(option) for option in value]
        elif keyword in _ONE:
            if isinstance(value, (dict, bool)):
                copied[keyword] = self._copy(value)
        elif keyword == "required":
            if isinstance(value, list):
                copied[keyword] = [name for name in value if isinstance(name, str)]
        elif keyword == "enum":
            if isinstance(value, list):
                copied[keyword] = value
        elif keyword == "type":
            if isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
                copied[keyword] = value
        else:
            copied[keyword] = value

    def _reference(self, reference: Any) -> str | None:
        """Return the name of a definition in the scope, or None for a reference that cannot be followed."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return None
        names = self._shared if reference.startswith(PREFIX) else self._own
        if reference in names:
            return names[reference]

        target = _at(self._root, reference)
        if target is None or len(self._scope.definitions) >= DEFINITIONS_MAX:
            return None

        title = self._root.get("title") if isinstance(self._root, dict) else None
        short = reference.rpartition("/")[2] or (title if isinstance(title, str) else "") or "Root"
        name = names[reference] = self._scope.define(short.replace("/", "_").replace("~", "_"))
        copied = self._copy(target if target is not self._root else {**target})

        definitions = self._scope.definitions
        if name != short and definitions.get(short) == copied:
            del definitions[name]
            name = names[reference] = short
        definitions[name] = copied
        return name


def _at(tree: Any, reference: str) -> Any:
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~").replace("%20", " ")
        if isinstance(tree, dict) and name in tree:
            tree = tree[name]
        elif isinstance(tree, list) and name.isascii() and name.isdigit() and len(name) < 7 and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return None
    return tree if isinstance(tree, (dict, bool)) else None
