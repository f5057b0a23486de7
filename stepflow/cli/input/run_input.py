"""The input of a run, or the inputs of a batch: from a file, an option, JSONL or stdin.

- No command waits for a person to type: without an input on a terminal, the error describes the input of the flow.
- A batch may have any size: memory holds one line of a JSONL file.
"""

from __future__ import annotations

import codecs
import os
import shlex
import stat
import sys
import tempfile
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from stepflow.cli.console import Usage, check_choice
from stepflow.cli.input.files import compact_tree, open_file, parse_text, read_bounded
from stepflow.cli.input.input_help import describe_input, wants_input
from stepflow.cli.input.values import ABSENT, at_most_one, read_value
from stepflow.cli.options import ValueOptions
from stepflow.codec import PAYLOAD_BYTES_MAX, Json, compact
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from stepflow.cli.options import InputOptions
    from stepflow.flow import Flow

STDIN_FORMATS = ("json", "yaml")

LINE_BYTES_MAX = PAYLOAD_BYTES_MAX + 2
"""A line with its end. A longer line arrives in parts, and the first part is refused."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Compact JSON texts, one per item. A batch with a single item is still a batch: the output is JSONL."""

    values: Iterable[bytes]
    batch: bool

    def __iter__(self) -> Iterator[Json]:
        return map(Json, self.values)


class InputLines:
    """The inputs in a JSONL file, read and checked line by line whenever iterated; one iteration at a time.

    A pipe, which can be read once, is first copied to a temporary file.
    """

    def __init__(self, path: Path) -> None:
        """Raises: Usage (no such file), Invalid (a pipe with more lines than a batch has items)."""
        self._path = path
        self._copy: BinaryIO | None = None
        with open_file(path, "inputs") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                self._copy = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
                weakref.finalize(self, self._copy.close)
                _copy_lines(file, self._copy, path)

    def __iter__(self) -> Iterator[bytes]:
        """Yield compact JSON texts. Raises: Invalid with the line number."""
        if self._copy is None:
            with open_file(self._path, "inputs") as file:
                yield from self._texts(file)
        else:
            self._copy.seek(0)
            yield from self._texts(self._copy)

    def _texts(self, file: BinaryIO) -> Iterator[bytes]:
        number = 0
        while line := file.readline(LINE_BYTES_MAX):
            number += 1
            location = f"{self._path} line {number}"
            text = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
            if not text:
                raise Invalid("INPUT_INVALID", f"{location} is empty; each line is the JSON input of one item")
            yield self._item(text, location)

    def _item(self, text: bytes, location: str) -> bytes:
        """Return the compact text of an item. Raises: Invalid, with a hint if it spans lines."""
        try:
            return compact(text, what=location)
        except Invalid as error:
            if text not in (b"[", b"{"):
                raise
            make = f"; this makes lines of a list: jq -c '.[]' {shlex.quote(str(self._path))}" if text == b"[" else ""
            hint = f"{location} begins a value of several lines; each line is the JSON input of one item{make}"
            raise Invalid(error.reason, hint) from None


def _copy_lines(pipe: BinaryIO, copy: BinaryIO, path: Path) -> None:
    """Copy a pipe, which may never end. Raises: Invalid `TOO_MANY_ITEMS`, Usage (a full disk)."""
    from control_plane.inputs import RUN_ITEMS_MAX

    lines = 0
    try:
        while part := pipe.readline(LINE_BYTES_MAX):
            copy.write(part)
            lines += part.endswith(b"\n")
            if lines > RUN_ITEMS_MAX:
                raise Invalid("TOO_MANY_ITEMS", f"inputs {path}: more than {RUN_ITEMS_MAX:,} lines, the limit of a run")
    except OSError as error:
        raise Usage("FILE_UNREADABLE", f"cannot keep a copy of the inputs {path}: {error.strerror}") from None


def read_inputs(
    options: InputOptions, flow: Flow, stdin: BinaryIO | None = None, *, stdin_taken: bool = False
) -> Inputs:
    """Read the input of a run, or the inputs of a batch; without an option from stdin (`stdin` in tests).

    With `stdin_taken`, stdin holds something else. A flow that neither declares nor reads an input runs on `null`
    if none is given.

    Raises:
        Usage: exclusive options, a missing file, or no input for a flow with an input.
        Invalid: not JSON or YAML, or too large.
    """
    texts = {"--input": options.value, "--input-json": options.json, "--input-yaml": options.yaml}
    at_most_one({**texts, "--inputs": options.lines})
    if options.lines is not None:
        return Inputs(InputLines(options.lines), batch=True)

    if options.value == "-":
        text = _read_stdin(options.stdin_format, stdin or sys.stdin.buffer)
        return Inputs([text or _missing(flow)], batch=False)
    value = read_value(ValueOptions(options.value, options.json, options.yaml), "input")
    if value is not ABSENT:
        return Inputs([compact_tree(value, "input")], batch=False)
    if stdin_taken and wants_input(flow):
        _missing(flow)
    return Inputs([_piped_input(options.stdin_format, flow, stdin)], batch=False)


def _piped_input(stdin_format: str, flow: Flow, stdin: BinaryIO | None) -> bytes:
    """Return the input in a pipe, `null` for a flow without an input. Raises: Usage, Invalid."""
    check_choice("--stdin-format", stdin_format, STDIN_FORMATS)
    if not wants_input(flow):
        return b"null"

    text = _read_stdin(stdin_format, stdin or sys.stdin.buffer) if stdin is not None or _is_piped() else b""
    return text or _missing(flow)


def _missing(flow: Flow) -> NoReturn:
    raise Usage("INPUT_MISSING", f"the flow needs an input, and none was given.\n\n{describe_input(flow)}")


def _read_stdin(stdin_format: str, stdin: BinaryIO) -> bytes:
    """Return the value on stdin as compact JSON, b"" if there is none. Raises: Usage, Invalid."""
    check_choice("--stdin-format", stdin_format, STDIN_FORMATS)
    text = read_bounded(stdin, "the input on stdin")
    if not text.strip():
        return b""
    return compact_tree(parse_text(text, "stdin", "yaml" if stdin_format == "yaml" else "json"), "input")


def _is_piped() -> bool:
    return not sys.stdin.closed and not sys.stdin.isatty()
