"""`--env-file`: variables of a file, added to the environment of this process and of the processes it starts.

- The real environment wins: a variable that is set, also to an empty text, keeps its value.
- `${NAME}` in a value is replaced, from the real environment first, then from the lines above.
- All values of the file are hidden in the logs and texts of this process from here on.
- An error names file and line, and never quotes the line: it may hold a secret.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from stepflow.cli.console import Usage
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.telemetry import hide

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path


def apply_env_file(path: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Add the variables of a file to the environment.

    Raises: Usage, no such file, too large, not UTF-8, or a line that is not `NAME=VALUE`.
    """
    content = _read(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _invalid(path, line, "it is not UTF-8") from None

    values = _parse(path, text)
    hide(filter(None, values.values()))
    for name, value in values.items():
        if value is not None:  # a name alone is taken from the environment, where it is already
            environ.setdefault(name, value)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(PAYLOAD_BYTES_MAX + 1)
    except OSError as error:
        raise Usage("FILE_UNREADABLE", f"cannot read the env file {path}: {error.strerror}", path=str(path)) from None
    if len(content) > PAYLOAD_BYTES_MAX:
        raise Usage("PAYLOAD_TOO_LARGE", f"the env file {path} has more than {PAYLOAD_BYTES_MAX:,} bytes")
    return content


def _parse(path: Path, text: str) -> dict[str, str | None]:
    from dotenv.main import DotEnv
    from dotenv.parser import parse_stream

    for binding in parse_stream(io.StringIO(text)):
        # The text of a binding begins with the blank lines and comments above it.
        begun = binding.original.string
        line = binding.original.line + begun[: len(begun) - len(begun.lstrip())].count("\n")
        if binding.error:
            raise _invalid(path, line, "it is not NAME=VALUE, or a quote is not closed")
        if binding.key is not None and ("\0" in (binding.value or "") or not binding.key.isprintable()):
            raise _invalid(path, line, "it has characters that no environment can hold")

    return DotEnv(None, stream=io.StringIO(text), override=False).dict()


def _invalid(path: Path, line: int, problem: str) -> Usage:
    return Usage(
        "ENV_FILE_INVALID", f"{path}:{line}: {problem}; write one NAME=VALUE a line", path=str(path), line=line
    )


__all__ = ["apply_env_file"]
