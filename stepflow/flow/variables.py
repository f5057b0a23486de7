"""Declared variables of a flow, and defaults.

Read from `schemas.properties.variables`. The effective default of a variable is the `default` of its schema; otherwise,
unless the variable is required, an implicit default by type (`""`, 0, false; null if null is among several types).
Supplied values are used unchanged, without a check against the schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepflow import codec
from stepflow.codec import Json
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ENVIRONMENT_PREFIX = "STEPFLOW_VAR_"


@dataclass(frozen=True, slots=True)
class VariableSpec:
    """`default` is the effective default, or None (a null default is `Json(b"null")`)."""

    name: str
    required: bool = False
    default: Json | None = None
    env_var: str | None = None
    is_secret: bool = False
    description: str | None = None
    schema: Any = None

    @property
    def environment_name(self) -> str:
        """Name of the environment variable that supplies the value."""
        return self.env_var or ENVIRONMENT_PREFIX + self.name.upper()


@dataclass(frozen=True, slots=True)
class VariableSpecs:
    """The declared variables, in order. `declared` is False if the flow has no schema for variables."""

    specs: Mapping[str, VariableSpec] = field(default_factory=dict)
    declared: bool = False

    @classmethod
    def from_schema(cls, schema: Any) -> VariableSpecs:
        """Read the schema of a flow's variables; None declares no variables."""
        if not isinstance(schema, dict):
            return cls()
        required = schema.get("required")
        names = required if isinstance(required, list) else []
        properties = schema.get("properties") or {}
        return cls({name: _spec(name, one, name in names) for name, one in properties.items()}, declared=True)

    def __iter__(self) -> Iterator[VariableSpec]:
        return iter(self.specs.values())

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __getitem__(self, name: str) -> VariableSpec:
        return self.specs[name]

    def get(self, name: str) -> VariableSpec | None:
        """Return the declaration of `name`, or None."""
        return self.specs.get(name)

    def default(self, name: str) -> Json | None:
        """Return the effective default of `name`, declared or not."""
        spec = self.specs.get(name)
        return spec.default if spec else None

    def from_environment(self, environ: Mapping[str, str], supplied: Mapping[str, Any]) -> dict[str, Any]:
        """Return `supplied`, completed with the declared variables that the environment sets.

        A value is parsed as JSON if possible, and is a string otherwise.
        """
        found = dict(supplied)
        for spec in self:
            text = environ.get(spec.environment_name)
            if spec.name not in found and text is not None:
                found[spec.name] = _json_or_text(text)
        return found


_IMPLICIT_DEFAULTS = {"string": b'""', "number": b"0", "integer": b"0", "boolean": b"false"}


def _spec(name: str, schema: Any, required: bool) -> VariableSpec:
    if not isinstance(schema, dict):
        return VariableSpec(name, required, schema=schema)
    env_var, description = schema.get("env_var"), schema.get("description")
    return VariableSpec(
        name,
        required,
        default=_default(schema, required),
        env_var=env_var if isinstance(env_var, str) else None,
        is_secret=schema.get("is_secret") is True,
        description=description if isinstance(description, str) else None,
        schema=schema,
    )


def _default(schema: dict[str, Any], required: bool) -> Json | None:
    if "default" in schema:
        return Json(codec.encode(schema["default"]))
    if required:
        return None
    kind = schema.get("type")
    if isinstance(kind, list):
        return Json(b"null") if "null" in kind else None
    raw = _IMPLICIT_DEFAULTS.get(kind) if isinstance(kind, str) else None
    return None if raw is None else Json(raw)


def _json_or_text(text: str) -> Any:
    try:
        return codec.parse(text, what="the environment variable")
    except Invalid:
        return text
