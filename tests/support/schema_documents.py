"""Documents that a JSON Schema accepts, for hypothesis: drawn along the schema, then checked against it.

Knows the words that the schemas of flows and configs use, and no others.
"""

from typing import Any

import jsonschema_rs
from hypothesis import strategies as st

_DEPTH_MAX = 6

_NAMES = st.sampled_from(("a", "b.c", "$step", "$custom", "path", "default", "x y", "/a", "/"))
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**40), st.floats(-2, 2), st.sampled_from(("", "a", "$.a[0]", "${A}"))
)
ANY = st.recursive(
    _SCALARS, lambda one: st.lists(one, max_size=2) | st.dictionaries(_NAMES, one, max_size=2), max_leaves=4
)


def documents(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return a strategy of documents that the schema accepts."""
    validator = jsonschema_rs.Draft202012Validator(schema)
    return _drawn(schema).filter(validator.is_valid)


@st.composite
def _drawn(draw: st.DrawFn, root: dict[str, Any]) -> Any:
    return _draw(draw, root, root, 0)


def _draw(draw: st.DrawFn, root: dict[str, Any], schema: Any, depth: int) -> Any:
    schema = _decided(draw, root, {} if schema is True else schema)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))

    types = schema.get("type") or ("object" if "properties" in schema or "required" in schema else None)
    if types is None:
        kinds = ["any"] if depth > _DEPTH_MAX or "additionalProperties" not in schema else ["any", "object", "array"]
        kind = draw(st.sampled_from(kinds))
    else:
        kind = draw(st.sampled_from([types] if isinstance(types, str) else types))

    if kind == "object":
        return _draw_object(draw, root, schema, depth)
    if kind == "array":
        size = 0 if depth > _DEPTH_MAX else draw(st.integers(0, 2))
        return [_draw(draw, root, schema.get("items", {}), depth + 1) for _ in range(size)]
    return draw(_scalar(kind, schema))


def _scalar(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    lowest, highest = schema.get("minimum", -5), schema.get("maximum", 2**40)
    if kind == "string":
        texts = st.sampled_from(("a", "b", "/a", ""))
        return st.from_regex(schema["pattern"]) if "pattern" in schema else texts
    return {
        "null": st.none(),
        "boolean": st.booleans(),
        "integer": st.integers(lowest, highest),
        "number": st.floats(lowest, min(highest, 1e9)),
        "any": ANY,
    }[kind]


def _draw_object(draw: st.DrawFn, root: dict[str, Any], schema: dict[str, Any], depth: int) -> dict[str, Any]:
    required = set(schema.get("required", ()))
    found: dict[str, Any] = {}
    for name, below in schema.get("properties", {}).items():
        wanted = name in required or (depth <= _DEPTH_MAX and draw(st.integers(0, 3)) == 0)
        if wanted and below is not False:
            found[name] = _draw(draw, root, below, depth + 1)

    for name in required - set(found):
        found[name] = draw(ANY)
    others = schema.get("additionalProperties", False)
    if isinstance(others, dict) and depth <= _DEPTH_MAX:
        pattern = schema.get("propertyNames", {}).get("pattern")
        for name in draw(st.lists(st.from_regex(pattern) if pattern else _NAMES, max_size=2, unique=True)):
            found.setdefault(name, _draw(draw, root, others, depth + 1))
    return found


def _decided(draw: st.DrawFn, root: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without references and alternatives: one of each is drawn."""
    while True:
        schema = dict(schema)
        if "$ref" in schema:
            schema = _merged(schema, _resolved(root, schema.pop("$ref")))
        elif "anyOf" in schema or "oneOf" in schema:
            choices = schema.pop("anyOf", None) or schema.pop("oneOf")
            schema = _merged(schema, draw(st.sampled_from(choices)))
        elif "allOf" in schema:
            # Alternatives that exclude each other: one holds, the others do not apply.
            schema = _merged(schema, draw(st.sampled_from(schema.pop("allOf"))))
        elif "if" in schema:
            condition, then, otherwise = schema.pop("if"), schema.pop("then", {}), schema.pop("else", None)
            takes_then = otherwise is None or (then is not False and draw(st.booleans()))
            schema = _merged(schema, _merged(condition, then) if takes_then else otherwise)
        else:
            return schema


def _resolved(root: dict[str, Any], reference: str) -> dict[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = {**one, **other}
    if "properties" in one and "properties" in other:
        shared = one["properties"].keys() & other["properties"].keys()
        both = {name: _merged(one["properties"][name], other["properties"][name]) for name in shared}
        merged["properties"] = {**one["properties"], **other["properties"], **both}
    if "required" in one and "required" in other:
        merged["required"] = [*one["required"], *other["required"]]
    return merged
