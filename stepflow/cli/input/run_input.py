"""The input of a run, or the inputs of a batch: from a file, an option, JSONL or stdin.

No command waits for a person to type: without an input on a terminal, the error describes the input of the flow.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from stepflow.cli.console import Usage, check_choice
from stepflow.cli.input.files import compact_tree, open_file, parse_text, read_bounded, too_large
from stepflow.cli.input.input_help import describe_input, wants_input
from stepflow.cli.input.values import ABSENT, at_most_one, read_value
from stepflow.cli.options import ValueOptions
from stepflow.codec import PAYLOAD_BYTES_MAX, compact
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.cli.options import InputOptions
    from stepflow.flow import Flow

INPUTS_BYTES_MAX = 256 * 1024 * 1024
"""Limit of a whole JSONL file; each line has the limit of a single value."""

assert INPUTS_BYTES_MAX > PAYLOAD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Inputs:
    """Compact JSON texts, one per item. A batch with a single item is still a batch: the output is JSONL."""

    values: list[bytes]
    batch: bool


def read_inputs(options: InputOptions, flow: Flow, stdin: BinaryIO | None = None) -> Inputs:
    """Read the input of a run, or the inputs of a batch; without an option from stdin (`stdin` in tests).

    A flow that neither declares nor reads an input runs on `null` if none is given.

    Raises:
        Usage: exclusive options, a missing file, or no input for a flow with an input.
        Invalid: not JSON or YAML, or too large.
    """
    at_most_one(
        {"--input": options.file, "--input-json": options.json, "--input-yaml": options.yaml, "--inputs": options.lines}
    )
    if options.lines is not None:
        return Inputs(_read_lines(options.lines), batch=True)

    value = read_value(ValueOptions(options.file, options.json, options.yaml), "input")
    if value is not ABSENT:
        return Inputs([compact_tree(value, "input")], batch=False)
    return Inputs([_read_stdin(options.stdin_format, flow, stdin)], batch=False)


def _read_stdin(stdin_format: str, flow: Flow, stdin: BinaryIO | None) -> bytes:
    check_choice("--stdin-format", stdin_format, ("json", "yaml"))
    if not wants_input(flow):
        return b"null"

    text = b"" if stdin is None and not _is_piped() else read_bounded(stdin or sys.stdin.buffer, "the input on stdin")
    if not text.strip():
        raise Usage("INPUT_MISSING", f"the flow needs an input, and none was given.\n\n{describe_input(flow)}")
    return compact_tree(parse_text(text, "stdin", "yaml" if stdin_format == "yaml" else "json"), "input")


def _is_piped() -> bool:
    return not sys.stdin.closed and not sys.stdin.isatty()


def _read_lines(path: Path) -> list[bytes]:
    """Read the inputs of a JSONL file. Raises: Usage, Invalid with the line number."""
    values: list[bytes] = []
    size = 0

    with open_file(path, "inputs", INPUTS_BYTES_MAX) as file:
        # A line over the limit arrives in parts, and the first part is refused.
        while line := file.readline(PAYLOAD_BYTES_MAX + 2):
            size += len(line)
            if size > INPUTS_BYTES_MAX:  # the file has grown since its size was checked, or is a pipe
                raise too_large(f"inputs {path}", INPUTS_BYTES_MAX)

            location = f"{path} line {len(values) + 1}"
            if not line.strip():
                raise Invalid("INPUT_INVALID", f"{location} is empty; each line is the JSON input of one item")
            values.append(compact(line.strip(), what=location))

    return values
