"""Secret values of flows, and the removal from logs and messages.

A schema node with `is_secret: true` marks its value, with everything below. Marks apply through
`properties`, `additionalProperties`, `items`, `prefixItems`, local `$ref`s and combinators; when in doubt (several
alternatives, a pattern) a value is secret. Data for components and for the store is never redacted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow import codec
from stepflow.codec import Json
from stepflow.redaction import REDACTED, KnownSecrets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from stepflow.flow.model import Flow


class SecretMap:
    """The marks of a schema. False if there are none."""

    __slots__ = ("_definitions", "_marked", "_schema")

    def __init__(self, schema: Any, definitions: Mapping[str, Any]) -> None:
        own = schema.get("$defs") if isinstance(schema, dict) else None
        self._schema = schema
        self._definitions = {**definitions, **own} if isinstance(own, dict) else definitions
        self._marked = _has_mark([schema, *definitions.values()])

    @classmethod
    def from_schema(cls, schema: Any, definitions: Mapping[str, Any] | None = None) -> SecretMap:
        """Read the marks of a schema; its `#/$defs/…` refer to `definitions`."""
        return cls(schema, definitions or {})

    def __bool__(self) -> bool:
        return self._marked

    def redact(self, tree: Any) -> Any:
        """Return a copy of `tree` with every marked value replaced by `[REDACTED]`."""
        return self._redact(tree, [self._schema]) if self._marked else tree

    def secret_values(self, tree: Any) -> Iterator[Any]:
        """Yield the marked values of `tree`."""
        if self._marked:
            yield from self._secret_values(tree, [self._schema])

    def _redact(self, tree: Any, schemas: list[Any]) -> Any:
        applicable = self._applicable(schemas)
        if _is_secret(applicable):
            return REDACTED
        if isinstance(tree, dict) and applicable:
            return {key: self._redact(value, _of_member(applicable, key)) for key, value in tree.items()}
        if isinstance(tree, list) and applicable:
            return [self._redact(value, _of_element(applicable, index)) for index, value in enumerate(tree)]
        return tree

    def _secret_values(self, tree: Any, schemas: list[Any]) -> Iterator[Any]:
        applicable = self._applicable(schemas)
        if _is_secret(applicable):
            yield tree
        elif isinstance(tree, dict) and applicable:
            for key, value in tree.items():
                yield from self._secret_values(value, _of_member(applicable, key))
        elif isinstance(tree, list) and applicable:
            for index, value in enumerate(tree):
                yield from self._secret_values(value, _of_element(applicable, index))

    def _applicable(self, schemas: list[Any]) -> list[dict[str, Any]]:
        """Return the schemas and, transitively, the schemas that they apply to the same value; cycles are allowed."""
        found: list[dict[str, Any]] = []
        seen: set[int] = set()
        todo = list(schemas)
        while todo:
            schema = todo.pop()
            if not isinstance(schema, dict) or id(schema) in seen:
                continue
            seen.add(id(schema))
            found.append(schema)

            reference = schema.get("$ref")
            if isinstance(reference, str) and reference.startswith("#/$defs/"):
                name = reference.removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")
                todo.append(self._definitions.get(name))
            for key in ("allOf", "anyOf", "oneOf"):
                options = schema.get(key)
                todo.extend(options if isinstance(options, list) else ())
            todo.extend(schema.get(key) for key in ("if", "then", "else"))
        return found


def _is_secret(schemas: list[dict[str, Any]]) -> bool:
    return any(schema.get("is_secret") is True for schema in schemas)


def _of_member(schemas: list[dict[str, Any]], key: str) -> list[Any]:
    """Return the schemas of a member. Patterns are not matched: all apply to undeclared members."""
    found: list[Any] = []
    for schema in schemas:
        properties, patterns = schema.get("properties"), schema.get("patternProperties")
        if isinstance(properties, dict) and key in properties:
            found.append(properties[key])
        else:
            found.extend(patterns.values() if isinstance(patterns, dict) else ())
            found.append(schema.get("additionalProperties"))
    return found


def _of_element(schemas: list[dict[str, Any]], index: int) -> list[Any]:
    found: list[Any] = []
    for schema in schemas:
        items, prefix = schema.get("items"), schema.get("prefixItems")
        if isinstance(items, list):  # `prefixItems` in older drafts
            items, prefix = schema.get("additionalItems"), items
        found.append(prefix[index] if isinstance(prefix, list) and index < len(prefix) else items)
    return found


def _has_mark(trees: list[Any]) -> bool:
    todo = list(trees)
    while todo:
        tree = todo.pop()
        if isinstance(tree, dict):
            if tree.get("is_secret") is True:
                return True
            todo.extend(tree.values())
        elif isinstance(tree, list):
            todo.extend(tree)
    return False


class Redactor(KnownSecrets):
    """The secret values of a run, and their removal from texts.

    `inputs` are the items' input trees, `variables` the supplied variables (trees or `Json`).
    """

    __slots__ = ()

    def __init__(self, flow: Flow, inputs: Iterable[Any] = (), variables: Mapping[str, Any] | None = None) -> None:
        super().__init__(marked_values(flow, inputs, variables))


def marks_secrets(flow: Flow) -> bool:
    """Return True if the flow marks any part of its input or a variable."""
    parts = (flow.schema("input"), flow.schema("variables"))
    return any(map(bool, (SecretMap.from_schema(part, flow.schema_definitions) for part in parts)))


def marked_values(flow: Flow, inputs: Iterable[Any] = (), variables: Mapping[str, Any] | None = None) -> set[str]:
    """Return the texts within marked values of inputs and variables (trees or `Json`), and the numbers in JSON form."""
    definitions = flow.schema_definitions
    input_secrets = SecretMap.from_schema(flow.schema("input"), definitions)
    variable_secrets = SecretMap.from_schema(flow.schema("variables"), definitions)
    found: set[str] = set()

    if input_secrets:
        for tree in inputs:
            _collect(input_secrets.secret_values(_plain(tree)), found)
    if variable_secrets:
        supplied = {name: _plain(value) for name, value in (variables or {}).items()}
        _collect(variable_secrets.secret_values(_schema_defaults(flow) | supplied), found)
    return found


def _collect(values: Iterable[Any], found: set[str]) -> None:
    todo = list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
        elif value is not None and not isinstance(value, bool):
            found.add(value if isinstance(value, str) else codec.encode(value).decode())


def _schema_defaults(flow: Flow) -> dict[str, Any]:
    properties = (flow.schema("variables") or {}).get("properties") or {}
    return {
        name: schema["default"]
        for name, schema in properties.items()
        if isinstance(schema, dict) and "default" in schema
    }


def _plain(value: Any) -> Any:
    return value.tree if isinstance(value, Json) else value
