"""Files that appear whole: an interrupted write leaves what was there before, or nothing.

The content goes to a draft in the same folder, which is renamed at the end. A device, a pipe, a file of another user or
with several links, and a file in a folder that takes no new files, are written in place.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write; it takes the place of `path` at the end of the block. Raises: OSError."""
    target = path.resolve() if path.is_symlink() else path
    mode = _mode(target)
    if mode is None or not os.access(target.parent, os.W_OK):
        with path.open("wb") as file:
            yield file
        return

    draft = target.parent / f".stepflow-{secrets.token_hex(8)}.part"
    try:
        with draft.open("xb") as file:
            if mode:
                os.fchmod(file.fileno(), mode)
            yield file
        draft.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _mode(target: Path) -> int | None:
    """Return the mode of a file that may be replaced, 0 if there is none; None for what is written in place."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return 0
    replaceable = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
    return stat.S_IMODE(found.st_mode) if replaceable else None


__all__ = ["whole_file"]
