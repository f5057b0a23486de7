"""Values given as a file, as JSON text or as YAML text: variables, overrides, payloads.

Exclusive options are refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli.console import Usage
from stepflow.cli.input.files import parse_text, read_file, value_format
from stepflow.errors import Invalid
from stepflow.telemetry import hide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepflow.cli.options import ValueOptions, VariableOptions
    from stepflow.flow import Flow

ABSENT: Any = object()
"""Returned by `read_value` when none of the three options is given; None is a value (`null`)."""


def read_variables(options: VariableOptions, flow: Flow, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the given values of variables, as trees, without the flow's own defaults.

    Texts from the environment are hidden in the logs and texts of this process from here on.

    Raises:
        Usage: exclusive options, a missing file.
        Invalid: not JSON or YAML, too large, not an object.
    """
    given = read_value(options.given, "variables")
    values: dict[str, Any] = {} if given is ABSENT else given
    if not isinstance(values, dict):
        raise Invalid("VARIABLES_INVALID", "variables are given as an object of names and values")

    if options.from_environment:
        from stepflow.flow import VariableSpecs

        supplied, values = values, VariableSpecs.from_schema(flow.schema("variables")).from_environment(environ, values)
        hide(text for name, text in values.items() if name not in supplied and isinstance(text, str))
    return values


def read_overrides(options: ValueOptions) -> Any:
    """Return the tree of the overrides, unchecked, or None without overrides. Raises as `read_variables`."""
    value = read_value(options, "overrides")
    return None if value is ABSENT else value


def read_payload(options: ValueOptions) -> Any:
    """Return the payload of a signal, None without one. Raises as `read_variables`."""
    value = read_value(options, "payload")
    return None if value is ABSENT else value


def read_value(options: ValueOptions, group: str) -> Any:
    """Return the tree of a group of three options, or `ABSENT`. Raises: Usage, Invalid."""
    at_most_one({f"--{group}": options.file, f"--{group}-json": options.json, f"--{group}-yaml": options.yaml})
    if options.file is not None:
        text = read_file(options.file, what=group)
        return parse_text(text, str(options.file), value_format(options.file, what=group))
    if options.json is not None:
        return parse_text(options.json, f"--{group}-json", "json")
    if options.yaml is not None:
        return parse_text(options.yaml, f"--{group}-yaml", "yaml")
    return ABSENT


def read_one(text: str, what: str) -> bytes:
    """Return a VALUE as compact JSON: JSON text, `-` for stdin, or a file. Raises: Usage, Invalid."""
    import sys
    from pathlib import Path

    from stepflow.cli.input.files import compact_tree, read_bounded

    if text == "-":
        return compact_tree(parse_text(read_bounded(sys.stdin.buffer, what), "stdin", "json"), what)
    if text.startswith(("{", "[", '"')):
        return compact_tree(parse_text(text, what, "json"), what)
    path = Path(text)
    return compact_tree(parse_text(read_file(path, what=what), text, value_format(path, what=what)), what)


def at_most_one(options: Mapping[str, object]) -> None:
    """Check that at most one option is given (not None). Raises: Usage."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise Usage("OPTIONS_EXCLUSIVE", f"{' and '.join(given)} exclude each other; give one of them", options=given)
