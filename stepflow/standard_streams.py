"""stdin, stdout and stderr, made safe at the start of a process.

- A closed descriptor 0, 1 or 2 becomes the null device. Otherwise the next file or socket gets its number, and text for
  people is written into it; libuv aborts the process.
- stderr is best effort: text that cannot be written (a full disk, a closed pipe, a lost terminal) is dropped.
- stdout is not: the first write that fails raises `StdoutUnwritable`. Later writes are dropped, so that the flush at
  the exit does not fail again.

Imports little: `stepflow --help` comes through here.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STREAMS = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_WRONLY, "w"), ("stderr", os.O_WRONLY, "w"))
"""Name, mode of the descriptor, and mode of the file, by descriptor."""


class StdoutUnwritable(OSError):
    """A write to stdout has failed."""


def open_closed_streams() -> None:
    """Open the null device in place of each closed descriptor 0-2. Call before any other file is opened."""
    for descriptor, (name, flags, mode) in enumerate(_STREAMS):
        closed = not _is_open(descriptor)
        if closed:
            opened = os.open(os.devnull, flags)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)

        if getattr(sys, name) is None:
            # A descriptor that something else has taken since then is not written to.
            file = descriptor if closed else os.devnull
            stream = open(file, mode, closefd=not closed, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  # a descriptor, for the life of the process
            _replace(name, stream)


def prepare_streams() -> None:
    """Make all three streams safe. Streams that were replaced before, as by a test, stay as they are."""
    open_closed_streams()
    if sys.stdout is sys.__stdout__:
        _replace("stdout", _over(_Stdout(1, "w", closefd=False), sys.stdout))
    if sys.stderr is sys.__stderr__:
        _replace("stderr", _over(_Stderr(2, "w", closefd=False), sys.stderr))


def _replace(name: str, stream: object) -> None:
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _over(raw: io.FileIO, former: object) -> io.TextIOWrapper:
    """Return a text stream over `raw`, with the settings of a former one."""
    assert isinstance(former, io.TextIOWrapper)
    former.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=former.encoding,
        errors=former.errors,
        line_buffering=former.line_buffering,
        write_through=former.write_through,
    )


class _Stdout(io.FileIO):
    failed = False

    def write(self, data: Buffer, /) -> int:
        if not self.failed:
            try:
                return _write(self, data)
            except OSError as error:
                self.failed = True
                raise StdoutUnwritable(error.errno, error.strerror) from None
        return memoryview(data).nbytes


class _Stderr(io.FileIO):
    def write(self, data: Buffer, /) -> int:
        try:
            return _write(self, data)
        except OSError:
            return memoryview(data).nbytes


def _write(file: io.FileIO, data: Buffer) -> int:
    """Write to a descriptor that another process may have set to non-blocking mode."""
    while (written := io.FileIO.write(file, data)) is None:
        from select import select

        select((), (file,), ())
    return written


__all__ = ["StdoutUnwritable", "open_closed_streams", "prepare_streams"]
