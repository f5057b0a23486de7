"""Reading files for the builtin component `/load_file`.

- Only regular files are read, only below one of the roots after all links are resolved, and at most `FILE_BYTES_MAX`.
- A path outside the roots is refused before the file is touched, so that flows cannot probe for files.

All functions block: call them from a thread.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from component_host.builtin.failure import CallFailed
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Code
from stepflow.flow.document import parse_tree
from stepflow.flow.source import DocumentInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

FileFormat = Literal["json", "yaml", "text"]

FILE_BYTES_MAX = PAYLOAD_BYTES_MAX

_FORMATS: dict[str, FileFormat] = {".json": "json", ".yml": "yaml", ".yaml": "yaml"}
"""By extension, lower case only; other files are text."""


@dataclass(frozen=True, slots=True)
class LoadedFile:
    data: Any
    resolved_path: str
    """The requested path, joined to the working directory."""
    size_bytes: int
    format: FileFormat


def load_file(
    path: str,
    format: FileFormat | None,  # the field's name in the component's input
    *,
    working_directory: Path,
    allowed_paths: Sequence[Path],
) -> LoadedFile:
    """Read and parse a file. Raises: CallFailed."""
    joined = working_directory / path
    content = _read(_permitted(joined, path, (working_directory, *allowed_paths)), path)
    format = format or _FORMATS.get(joined.suffix, "text")  # the field's name
    return LoadedFile(_parsed(content, format, path), str(joined), len(content), format)


def _permitted(joined: Path, path: str, roots: Sequence[Path]) -> str:
    """Return the real path. Raises: CallFailed, the path is outside the roots."""
    try:
        real = os.path.realpath(joined)
    except (OSError, ValueError):
        raise CallFailed(Code.INVALID_INPUT, f"load_file: `{path}` is not a usable path") from None

    if not any(Path(real).is_relative_to(os.path.realpath(root)) for root in roots):
        raise CallFailed(
            Code.INVALID_INPUT,
            f"load_file: `{path}` is outside the working directory; list its folder in `allowedPaths` to permit it",
        )

    return real


def _read(real: str, path: str) -> bytes:
    # O_NOFOLLOW: a link swapped in after the check would lead outside the roots.
    # O_NONBLOCK: opening a named pipe would block until a writer opens it.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

    try:
        descriptor = os.open(real, flags)
        with os.fdopen(descriptor, "rb") as file:
            return _content(file, os.fstat(descriptor), path)
    except (FileNotFoundError, NotADirectoryError):
        raise CallFailed(Code.RESOURCE_UNAVAILABLE, f"load_file: `{path}` does not exist") from None
    except IsADirectoryError:
        raise CallFailed(Code.INVALID_INPUT, f"load_file: `{path}` is a folder") from None
    except OSError as error:
        raise CallFailed(
            Code.RESOURCE_UNAVAILABLE, f"load_file: `{path}` cannot be read: {os.strerror(error.errno or 0)}"
        ) from None


def _content(file: Any, status: os.stat_result, path: str) -> bytes:
    if not stat.S_ISREG(status.st_mode):
        raise CallFailed(Code.INVALID_INPUT, f"load_file: `{path}` is not a regular file")

    content: bytes = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise CallFailed(Code.INVALID_INPUT, f"load_file: `{path}` is larger than {FILE_BYTES_MAX:,} bytes")

    return content


def _parsed(content: bytes, format: FileFormat, path: str) -> Any:  # the field's name
    if format == "text":
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise CallFailed(Code.COMPONENT_FAILED, f"load_file: `{path}` is not UTF-8 text") from None

    try:
        return parse_tree(content, source=path, format=format).value
    except DocumentInvalid as error:
        raise CallFailed(Code.COMPONENT_FAILED, f"load_file: {error.message}") from None
