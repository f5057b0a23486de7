"""The JSON Schema (draft 2020-12) of flow documents, made from the tables of `format`.

- Every document that the schema accepts is one that the parser accepts, without a remark on unread members.
- Members that a document may leave out may also be null.

Not here: what no schema can say, such as references to steps that exist (`validate`).
"""

from __future__ import annotations

from typing import Any

from stepflow.errors import Code
from stepflow.flow import format as tables
from stepflow.flow.duration import DURATION_PATTERN
from stepflow.flow.members import RETRIES_MAX
from stepflow.flow.syntax import FORMS
from stepflow.retry import BACKOFF_MEMBERS, DELAY_MS_MAX, FACTOR_MAX

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FLOW_SCHEMA_ID = "https://stepflow.org/schemas/v1/flow.json"

_STEP = r"(?:\.[^.\[]*|\[\s*[0-9]{1,9}\s*\]|\[\s*(?:'[^']*'|\"[^\"]*\")\s*\])"
PATH_PATTERN = rf"^\s*(?:\$(?:{_STEP})*|(?:[^\s$.\[][^.\[]*)?(?:{_STEP})*)$"


def flow_schema() -> dict[str, Any]:
    """Return the JSON Schema of flow documents."""
    return {
        "$schema": DIALECT,
        "title": "StepFlow flow",
        **members_schema(tables.FLOW, extra={"schema": {"description": "Address of this schema; not read."}}),
        "$defs": {
            "step": {"title": "Step", **members_schema(tables.STEP)},
            "expression": _expression(),
            "path": {"type": "string", "pattern": PATH_PATTERN},
            "duration": {"type": "string", "pattern": DURATION_PATTERN},
            "backoff": backoff_schema(),
            "onError": _on_error(),
            "schemas": _schemas(),
            "example": members_schema(tables.EXAMPLE),
            "case": members_schema((*tables.EXAMPLE, tables.EXPECTED)),
            "test": members_schema(tables.TEST),
            "expected": _expected(),
        },
    }


def members_schema(members: tuple[tables.Member, ...], *, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of a mapping with these members only."""
    properties = {
        member.name: {"description": member.description, **_kind(member.kind, is_optional=not member.required)}
        for member in members
    }
    required = [member.name for member in members if member.required]
    return {
        "type": "object",
        "properties": {**(extra or {}), **properties},
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def backoff_schema() -> dict[str, Any]:
    """Return the schema of a back-off, of the configuration and of `onError`."""
    delay = or_null({"type": "integer", "minimum": 0, "maximum": DELAY_MS_MAX})
    factor = or_null({"type": "number", "minimum": 1, "maximum": FACTOR_MAX})
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {
                    name: {"const": kind} if name == "type" else factor if name == "factor" else delay
                    for name in sorted(members)
                },
                "required": ["type"],
                "additionalProperties": False,
            }
            for kind, members in BACKOFF_MEMBERS.items()
        ]
    }


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a member that may be null."""
    if isinstance(schema.get("type"), str) and "enum" not in schema and "const" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    if set(schema) <= {"description", "default"}:
        return schema  # anything, null included
    described: dict[str, Any] = {key: value for key, value in schema.items() if key in ("description", "default")}
    rest = {key: value for key, value in schema.items() if key not in described}
    return {**described, "anyOf": [rest, {"type": "null"}]}


KINDS: dict[str, dict[str, Any]] = {
    "any": {},
    "text": {"type": "string"},
    "version": {"type": ["string", "number"]},
    "boolean": {"type": "boolean"},
    "mapping": {"type": "object"},
    "count": {"type": "integer", "minimum": 0, "maximum": RETRIES_MAX},
    "duration": {"$ref": "#/$defs/duration"},
    "backoff": {"$ref": "#/$defs/backoff"},
    "expression": {"$ref": "#/$defs/expression"},
    "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}},
    "onError": {"$ref": "#/$defs/onError"},
    "then": members_schema(())
    | {
        "properties": {"action": {"const": "useDefault"}, "defaultValue": {}},
        "required": ["action"],
    },
    "schemas": {"$ref": "#/$defs/schemas"},
    "schemaParts": {"$ref": "#/$defs/schemas/$defs/parts"},
    "schema": {"type": ["object", "boolean"]},
    "schemaMap": {
        "type": "object",
        "properties": {
            "properties": {"type": ["object", "null"], "additionalProperties": {"type": ["object", "boolean"]}}
        },
    },
    "definitions": {"type": "object", "additionalProperties": {"type": ["object", "boolean"]}},
    "test": {"$ref": "#/$defs/test"},
    "examples": {"type": "array", "items": {"$ref": "#/$defs/example"}},
    "cases": {"type": "array", "items": {"$ref": "#/$defs/case"}},
    "expected": {"$ref": "#/$defs/expected"},
    "code": {"enum": list(Code.__members__)},
}
"""The schema of each kind of member."""

_ANY_VALUE = frozenset(("any", "expression"))


def _kind(kind: str, *, is_optional: bool) -> dict[str, Any]:
    schema = KINDS[kind]
    if not is_optional or kind in _ANY_VALUE:
        return schema
    if kind == "version":
        return {"type": ["string", "number", "null"]}
    if kind == "schema":
        return {"type": ["object", "boolean", "null"]}
    return or_null(schema)


def _expression() -> dict[str, Any]:
    """Return the schema of expressions: the first key of `FORMS` in a mapping decides its form."""
    nested = {"$ref": "#/$defs/expression"}
    path = {"anyOf": [{"$ref": "#/$defs/path"}, {"type": "null"}]}
    forms: dict[str, Any] = {
        "$literal": {"properties": {"$literal": {"description": "The value itself, unevaluated."}}},
        "$if": {
            "properties": {
                "$if": {"description": "The condition: null, false and failures choose `else`.", **nested},
                "then": nested,
                "else": nested,
            },
            "required": ["then"],
        },
        "$coalesce": {
            "properties": {
                "$coalesce": {"description": "The first value that is not null.", "type": "array", "items": nested}
            }
        },
        "$from": False,
        "$step": {
            "properties": {
                "$step": {"description": "Id of a step: its result.", "type": "string"},
                "path": {"description": "Path into the result.", **path},
            }
        },
        "$input": {"properties": {"$input": {"description": "Path into the input; `$` is the whole input.", **path}}},
        "$variable": {
            "properties": {
                "$variable": {"description": "Name of a variable, or a path.", "$ref": "#/$defs/path"},
                "default": {"description": "Value without the variable.", **nested},
            }
        },
    }

    chain: dict[str, Any] = {"additionalProperties": nested}
    for form in reversed(FORMS):
        body = forms[form]
        then = body if body is False else {**body, "additionalProperties": False}
        chain = {"if": {"required": [form]}, "then": then, "else": chain}
    return {
        "title": "Expression",
        "if": {"type": "object"},
        "then": chain,
        "else": {"if": {"type": "array"}, "then": {"items": nested}},
    }


def _on_error() -> dict[str, Any]:
    choices = []
    for action, members in tables.ON_ERROR.items():
        schema = members_schema(members)
        schema["properties"]["action"] = {"description": members[0].description, "const": action}
        choices.append(schema)
    return {"title": "Handling of a failed component", "oneOf": choices}


def _schemas() -> dict[str, Any]:
    schema = members_schema(tables.SCHEMAS)
    return {**schema, "$defs": {"parts": members_schema(tables.SCHEMA_PARTS)}}


def _expected() -> dict[str, Any]:
    return {
        "title": "Expected outcome",
        "oneOf": [
            {
                "type": "object",
                "properties": {"outcome": {"const": "success"}, "result": {"description": "The expected result."}},
                "required": ["outcome", "result"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"outcome": {"const": "failed"}, "error": members_schema(tables.EXPECTED_ERROR)},
                "required": ["outcome", "error"],
                "additionalProperties": False,
            },
        ],
    }
