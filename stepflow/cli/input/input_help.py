"""The message of a missing input: the declared input, the options, an example."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from stepflow.codec import encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stepflow.flow import Flow

EXAMPLE_CHARS_MAX = 200
"""A longer example does not fit a command line and is left out."""


def wants_input(flow: Flow) -> bool:
    """Return True if the flow declares or reads an input."""
    return flow.schema("input") is not None or next(_input_paths(flow), None) is not None


def describe_input(flow: Flow) -> str:
    """Describe the input of a flow, and the options to give an input."""
    lines = _describe_schema(flow)
    lines += [
        "",
        "Give it with --input VALUE (JSON text, a file, or - for stdin), or a batch with --inputs FILE.",
    ]
    example = _example_input(flow)
    if example is not None:
        lines.append(_show_example(example))
    return "\n".join(lines)


def _show_example(text: str) -> str:
    # A number, true, false or null as VALUE would be the name of a file.
    is_value = text.startswith(("{", "[", '"'))
    return f"For example: --input {shlex.quote(text)}" if is_value else f"For example, on stdin: {text}"


def _describe_schema(flow: Flow) -> list[str]:
    schema = flow.schema("input")
    properties = schema.get("properties") if isinstance(schema, dict) else None

    if isinstance(schema, dict) and isinstance(properties, dict) and properties:
        required = schema.get("required") or ()
        members = [_describe_member(name, member, name in required) for name, member in properties.items()]
        return ["The input is an object with", *members]

    if isinstance(schema, dict) and schema:
        return [f"The input: {_describe_type(schema)}."]

    paths = sorted(set(_input_paths(flow)))
    reads = f" and reads {', '.join(paths)}" if paths else ""
    return [f"The flow declares no schema for its input{reads}."]


def _describe_member(name: str, schema: Any, required: bool) -> str:
    schema = schema if isinstance(schema, dict) else {}
    notes = [_describe_type(schema), "required" if required else "optional"]
    if "default" in schema and not schema.get("is_secret"):
        notes.append(f"default {encode(schema['default']).decode()}")

    text = f"  {name}  ({', '.join(notes)})"
    description = schema.get("description")
    return f"{text}  {description}" if isinstance(description, str) else text


def _describe_type(schema: Mapping[str, Any]) -> str:
    if isinstance(schema.get("enum"), list):
        return "one of " + ", ".join(encode(value).decode() for value in schema["enum"])
    kind = schema.get("type", "any value")
    return " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


def _example_input(flow: Flow) -> str | None:
    """Return the first example of the flow as JSON text, None if too long for a command line."""
    for example in flow.all_examples():
        text = encode(example["input"]).decode()
        return text if len(text) <= EXAMPLE_CHARS_MAX else None
    return None


def _input_paths(flow: Flow) -> Iterator[str]:
    """Yield the paths of all references to the input; `$` is the whole input."""
    for tree in (*(step.input for step in flow.steps), flow.output):
        yield from _input_paths_in(tree)


def _input_paths_in(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict) and "$literal" not in tree:
        if "$input" in tree:
            yield str(tree["$input"] or "$")
        for member in tree.values():
            yield from _input_paths_in(member)
    elif isinstance(tree, list):
        for member in tree:
            yield from _input_paths_in(member)
