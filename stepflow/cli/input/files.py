"""Files and texts of the command line: bounded reads, formats by extension, parsing.

- The size of a file is checked before reading; from a pipe, which has no size, at most the limit is read.
- The format of a file follows from the extension, never from the content.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from stepflow.cli.console import Usage
from stepflow.codec import PAYLOAD_BYTES_MAX, encode
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from pathlib import Path


def value_format(path: Path, *, what: str) -> Literal["yaml", "json"]:
    """Return the format of a file with one value, by the extension. Raises: Usage."""
    match path.suffix.lower():
        case ".yaml" | ".yml":
            return "yaml"
        case ".json":
            return "json"
        case ".jsonl":
            hint = "; give a batch of inputs with --inputs"
        case _:
            hint = ""
    raise Usage(
        "FILE_EXTENSION", f"{path}: unrecognized file extension; the {what} is a .yaml, .yml or .json file{hint}"
    )


def read_file(path: Path, *, what: str, bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
    """Read a file of bounded size. Raises: Usage (no such file), Invalid (too large)."""
    with open_file(path, what, bytes_max) as file:
        return read_bounded(file, f"{what} {path}", bytes_max)


def open_file(path: Path, what: str, bytes_max: int | None = None) -> BinaryIO:
    """Open a file for reading. Raises: Usage (no such file), Invalid (larger than `bytes_max`)."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise Usage("FILE_UNREADABLE", f"cannot read the {what} {path}: {error.strerror}", path=str(path)) from None

    size = os.fstat(file.fileno()).st_size
    if bytes_max is not None and size > bytes_max:
        file.close()
        raise too_large(f"{what} {path}", bytes_max, size)
    return file


def read_bounded(file: BinaryIO, what: str, bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
    """Read a file to the end. Raises: Invalid (longer than `bytes_max`)."""
    content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise too_large(what, bytes_max)
    return content


def parse_text(text: str | bytes, source: str, kind: Literal["yaml", "json"]) -> Any:
    """Return the tree of a text; `source` names the text in errors. Raises: Invalid."""
    from stepflow.flow import parse_tree

    if len(text) > PAYLOAD_BYTES_MAX:
        raise too_large(source, PAYLOAD_BYTES_MAX, len(text))
    return parse_tree(text, source=source, format=kind).value


def compact_tree(tree: Any, what: str) -> bytes:
    """Return a parsed tree as compact JSON. Raises: Invalid (too large)."""
    content = encode(tree)
    if len(content) > PAYLOAD_BYTES_MAX:  # YAML aliases expand a small file into a large value
        raise too_large(what, PAYLOAD_BYTES_MAX, len(content))
    return content


def too_large(what: str, bytes_max: int, size: int | None = None) -> Invalid:
    """Return the error for a value over the limit; `size` is None when reading stopped at the limit."""
    found = f"{size:,} bytes" if size is not None else f"more than {bytes_max:,} bytes"
    return Invalid(
        "PAYLOAD_TOO_LARGE",
        f"{what} is {found}; the limit is {bytes_max:,}. Put large data where the components can read it "
        "(a file, a bucket) and give its address",
        bytes_max=bytes_max,
    )
