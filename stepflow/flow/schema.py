"""Checks of values against the JSON Schemas of flows.

Promises:
- a message names the violated rule and the member, but never quotes a value, which may be secret;
- references outside the schema are never fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepflow.flow.model import Flow

_VALUE = "the value"

MESSAGE_CHARS_MAX = 500
"""Messages quote schemas and names of members, which can be long."""


class InputValidator:
    """Checks values against one schema. Compiling takes a millisecond, so keep it for all items of a run."""

    def __init__(self, schema: Any, definitions: Mapping[str, Any] | None = None) -> None:
        """Compile `schema`; its `#/$defs/…` may refer to `definitions`.

        Raises:
            Invalid: SCHEMA_INVALID.
        """
        import jsonschema_rs

        own = schema.get("$defs", {}) if isinstance(schema, dict) else None
        if definitions and isinstance(own, dict):
            schema = {**schema, "$defs": {**definitions, **own}}
        try:
            self._validator = jsonschema_rs.validator_for(schema, mask=_VALUE, retriever=_fetch_nothing)
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            problem = getattr(error, "message", None) or str(error)
            raise Invalid("SCHEMA_INVALID", f"the schema is not a valid JSON Schema: {_shortened(problem)}") from None

    @classmethod
    def for_input(cls, flow: Flow) -> InputValidator | None:
        """Return the validator of a flow's declared input, or None without a declaration. Raises: Invalid."""
        schema = flow.schema("input")
        return None if schema is None else cls(schema, flow.schema_definitions)

    def check(self, tree: Any) -> tuple[str, str] | None:
        """Return JSON pointer (empty: the root) and description of the first violation, or None if `tree` is valid."""
        if self._validator.is_valid(tree):
            return None
        error = next(self._validator.iter_errors(tree), None)
        if error is None:
            return None
        pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in error.instance_path)
        return _shortened(pointer), _shortened(error.message)


def _shortened(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 1] + "…"


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError(f"`{uri}` lies outside the flow; copy it under `schemas.$defs`")
