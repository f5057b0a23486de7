"""VALUEs, and the options made of them: variables, overrides, payloads.

- A VALUE is JSON text (it begins with `{`, `[` or `"`), `-` for stdin, else a YAML or JSON file.
- A pair is `NAME=VALUE` or `STEP.PATH=VALUE`: its value is JSON if it can be read as JSON, else text.
- Exclusive options are refused by name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepflow.cli.console import Usage
from stepflow.cli.input.files import parse_text, read_bounded, read_file, too_large, value_format
from stepflow.errors import Invalid
from stepflow.telemetry import hide

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepflow.cli.options import ValueOptions, VariableOptions
    from stepflow.flow import Flow

ABSENT: Any = object()
"""Returned by `read_value` when none of the options is given; None is a value (`null`)."""

OPTIONS = {"input": "--input", "variables": "--var-file", "overrides": "--set-file", "payload": "--payload"}
"""Kind of value → the option that gives it as a VALUE."""

_JSON_BEGINS = ("{", "[", '"')


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
    values |= _pairs(options.given.pairs, "--var", "NAME=VALUE", _declared_texts(flow))

    if options.from_environment:
        from stepflow.flow import VariableSpecs

        supplied, values = values, VariableSpecs.from_schema(flow.schema("variables")).from_environment(environ, values)
        hide(text for name, text in values.items() if name not in supplied and isinstance(text, str))
    return values


def read_overrides(options: ValueOptions) -> Any:
    """Return the tree of the overrides, unchecked, or None without overrides. Raises as `read_variables`."""
    value = read_value(options, "overrides")
    if not options.pairs:
        return None if value is ABSENT else value

    from stepflow.cli.input.step_changes import with_changes

    changes = _pairs(options.pairs, "--set", "STEP.PATH=VALUE")
    return with_changes({} if value is ABSENT else value, changes)


def read_payload(options: ValueOptions) -> Any:
    """Return the payload of a signal, None without one. Raises as `read_variables`."""
    value = read_value(options, "payload")
    return None if value is ABSENT else value


def read_value(options: ValueOptions, kind: str) -> Any:
    """Return the tree of a group of exclusive options, or `ABSENT`. Raises: Usage, Invalid."""
    option = OPTIONS[kind]
    at_most_one({option: options.value, f"--{kind}-json": options.json, f"--{kind}-yaml": options.yaml})
    if options.value is not None:
        return value_tree(options.value, kind)
    if options.json is not None:
        return parse_text(options.json, f"--{kind}-json", "json")
    if options.yaml is not None:
        return parse_text(options.yaml, f"--{kind}-yaml", "yaml")
    return ABSENT


def value_tree(text: str, kind: str, *, stdin_format: str = "json") -> Any:
    """Return the tree of a VALUE. Raises: Usage (no such file), Invalid (not JSON or YAML, too large)."""
    option = OPTIONS[kind]
    if text.lstrip().startswith(_JSON_BEGINS):
        return parse_text(text, option, "json")
    if text == "-":
        content = read_bounded(sys.stdin.buffer, f"the {kind} on stdin")
        return parse_text(content, "stdin", "yaml" if stdin_format == "yaml" else "json")

    path = Path(text)
    if not path.exists() and not path.suffix:
        raise Usage(
            "FILE_UNREADABLE",
            f'{option} {text[:80]}: there is no such file; JSON text begins with {{, [ or ", and - reads stdin',
            path=text[:80],
        )
    content = read_file(path, what=kind)
    return parse_text(content, text, value_format(path, what=kind))


def _declared_texts(flow: Flow) -> set[str]:
    """Return the variables that the flow declares as text: `--var zip=01234` and `--var id=7` are texts for them."""
    from stepflow.flow import VariableSpecs

    specs = VariableSpecs.from_schema(flow.schema("variables"))
    return {spec.name for spec in specs if isinstance(spec.schema, dict) and spec.schema.get("type") == "string"}


def _pairs(texts: Iterable[str], option: str, form: str, plain: Iterable[str] = ()) -> dict[str, Any]:
    """Return names and values of `NAME=VALUE` texts, in order; the values of `plain` names are texts. Raises: Usage."""
    from stepflow.codec import PAYLOAD_BYTES_MAX, parse

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise Usage("OPTION_INVALID", f"{option} is {form}, as in {option} {form.replace('VALUE', '5').lower()}")
        if name in found:
            raise Usage("OPTIONS_EXCLUSIVE", f"{option} gives {name[:80]} twice")
        if len(value) > PAYLOAD_BYTES_MAX:
            raise too_large(f"{option} {name[:80]}", PAYLOAD_BYTES_MAX, len(value))
        try:
            found[name] = value if name in plain and not value.startswith('"') else parse(value, what=option)
        except Invalid:
            found[name] = value
    return found


def at_most_one(options: Mapping[str, object]) -> None:
    """Check that at most one option is given (not None). Raises: Usage."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise Usage("OPTIONS_EXCLUSIVE", f"{' and '.join(given)} exclude each other; give one of them", options=given)
