"""The log lines of the components of a run, in the folder of the run (`logs/<run_id>.jsonl`).

- One JSON object a line. Secrets are gone already.
- At most `LOG_FILE_BYTES_MAX` in two files: when the newer one is half of that, it takes the place of the older one.
- A file that cannot be written loses lines and nothing else.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, BinaryIO, TextIO

import msgspec

from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from component_host.logged_lines import LoggedLines

LOG_FILE_BYTES_MAX = 4 * 1024 * 1024
"""Log lines kept of a run; the oldest go."""

log = get_logger(__name__)


class StoredLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the file. `run_id` is empty for a line of a plugin without a call."""

    at_ms: int
    text: str
    level: str = ""
    plugin: str = ""
    run_id: str = ""
    item: int = 0
    step_id: str = ""
    attempt: int = 0
    component: str = ""
    dropped: int = 0
    """Lines left out before this one."""


class RunLogFile:
    """Writes the lines of a run. Nothing is created before the first line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._size = 0
        self._broken = False

    def write(self, logged: LoggedLines) -> None:
        """Append lines. Never raises."""
        origin = logged.origin
        dropped = logged.dropped
        texts: list[str] = []
        for line in logged.lines:
            stored = StoredLine(
                line.at_ms,
                line.text,
                line.level,
                origin.plugin,
                origin.run_id,
                origin.item,
                origin.step_id,
                origin.attempt,
                origin.component,
                dropped,
            )
            texts.append(msgspec.json.encode(stored).decode() + "\n")
            dropped = 0

        if self._broken:
            return
        try:
            self._append("".join(texts))
        except OSError as error:
            self._broken = True
            log.warning("the log of the components cannot be written", path=str(self._path), error=error.strerror)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _append(self, text: str) -> None:
        if self._file is None or self._size > LOG_FILE_BYTES_MAX // 2:
            self._open()
        assert self._file is not None
        self._file.write(text)
        self._size += len(text.encode())

    def _open(self) -> None:
        if self._file is None:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            size = self._path.stat().st_size if self._path.exists() else 0
        else:
            size = self._size
            self._file.close()
        if size > LOG_FILE_BYTES_MAX // 2:
            self._path.replace(older_file(self._path))
            size = 0

        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._file, self._size = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1), size


def older_file(path: Path) -> Path:
    """Return the file of earlier lines."""
    return path.with_name(f"{path.name}.1")


class StoredLogReader:
    """Reads the lines of a run, also while they are written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_until: dict[bytes, int] = {}
        """By the beginning of a file: how far it has been read. A file may be renamed meanwhile."""

    def new_lines(self) -> Iterator[StoredLine]:
        """Yield the lines since the last call, the oldest first. Damaged lines are left out."""
        seen: dict[bytes, int] = {}
        for path in (older_file(self._path), self._path):
            try:
                with path.open("rb") as file:
                    head = file.readline()
                    if head.endswith(b"\n") and head not in seen:
                        seen[head] = self._read_until.get(head, 0)
                        file.seek(seen[head])
                        for line in _whole_lines(file):
                            seen[head] += len(line)
                            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                                yield _decode(line)
            except OSError:
                continue
        self._read_until = seen


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    for line in file:
        if not line.endswith(b"\n"):
            return  # still being written
        yield line


_decode = msgspec.json.Decoder(StoredLine).decode

__all__ = ["RunLogFile", "StoredLine", "StoredLogReader", "older_file"]
