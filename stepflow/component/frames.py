"""The frames of an exception, for the data of a failed call: the author's code first, bounded, never local variables.

- The author's frames lie below the server's working directory, or in the folder of the component's own file; those of
  installed packages and of Python follow as `library`. Frames of this SDK are left out.
- Paths are relative: to the working directory, to the component's folder, or to the folder of packages.
"""

from __future__ import annotations

import linecache
import os
import sysconfig
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, TracebackType

OWN_FRAMES_MAX = 16
LIBRARY_FRAMES_MAX = 4
"""Frames kept of each kind, the innermost ones."""

CODE_CHARS_MAX = 160
NAME_CHARS_MAX = 200

CAUSES_MAX = 2
CAUSE_CHARS_MAX = 500
"""Length of a cause's text."""

FRAMES_CHARS_MAX = 4 * 1024
"""Sum of the texts of all frames of an exception and its causes."""

Frame = dict[str, Any]

_SDK = f"{Path(__file__).parent}{os.sep}"
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_PYTHON = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")})


class FramesOf:
    """The frames of one exception of a component, the innermost one last."""

    def __init__(self, error: BaseException, function: Any, folder: str) -> None:
        """`function`: the component's. `folder`: the server's, with a slash at its end, or empty."""
        code = getattr(function, "__code__", None)
        own_folder = folder if code is None else f"{Path(_absolute(code.co_filename)).parent}{os.sep}"
        self._folders = (folder, own_folder) if folder else (own_folder,)
        self._left = FRAMES_CHARS_MAX
        self.frames = self._frames(error)
        self.causes = self._causes(error)

    def innermost(self) -> str:
        """Return the innermost frame of the author's code, `components.py:12 in greet`; empty if there is none."""
        own = [frame for frame in self.frames if "library" not in frame]
        return f"{own[-1]['file']}:{own[-1]['line']} in {own[-1]['function']}" if own else ""

    def _frames(self, error: BaseException) -> list[Frame]:
        own: deque[tuple[CodeType, int, str]] = deque(maxlen=OWN_FRAMES_MAX)
        library: deque[tuple[CodeType, int, str]] = deque(maxlen=LIBRARY_FRAMES_MAX)
        for code, line in _walk(error.__traceback__):
            file = _absolute(code.co_filename)
            if not file.startswith(_SDK):
                (own if self._is_own(file) else library).append((code, line, file))

        kept = [self._frame(*each, library=False) for each in self._within_bound(own)]
        return kept + [self._frame(*each, library=True) for each in self._within_bound(library)]

    def _causes(self, error: BaseException) -> list[dict[str, Any]]:
        """Return the exceptions that led to this one, the nearest first."""
        causes: list[dict[str, Any]] = []
        seen = {id(error)}
        while len(causes) < CAUSES_MAX:
            cause = error.__cause__
            if cause is None and not error.__suppress_context__:
                cause = error.__context__
            if cause is None or id(cause) in seen:
                break
            seen.add(id(cause))
            causes.append({"exception": _text_of(cause), "frames": self._frames(cause)})
            error = cause
        return causes

    def _is_own(self, file: str) -> bool:
        if any(mark in file for mark in _INSTALLED):
            return False
        return file.startswith(self._folders) and not file.startswith(_PYTHON)

    def _within_bound(self, frames: deque[tuple[CodeType, int, str]]) -> list[tuple[CodeType, int, str]]:
        """Return the innermost frames whose texts fit into what is left."""
        kept: deque[tuple[CodeType, int, str]] = deque()
        for each in reversed(frames):
            self._left -= len(each[2]) + len(each[0].co_name) + CODE_CHARS_MAX
            if self._left < 0:
                break
            kept.appendleft(each)
        return list(kept)

    def _frame(self, code: CodeType, line: int, file: str, *, library: bool) -> Frame:
        frame: Frame = {
            "file": _readable(self._relative(file), NAME_CHARS_MAX),
            "line": line,
            "function": _readable(code.co_name, NAME_CHARS_MAX),
        }
        if source := linecache.getline(code.co_filename, line).strip():
            frame["code"] = _readable(source, CODE_CHARS_MAX)
        return frame | ({"library": True} if library else {})

    def _relative(self, file: str) -> str:
        for folder in (*(self._folders if self._is_own(file) else ()), *_PYTHON):
            if file.startswith(folder):
                return file[len(folder) :]
        for mark in _INSTALLED:
            if mark in file:
                return file.rpartition(mark)[2]
        return Path(file).name


def _absolute(file: str) -> str:
    """Return the absolute path of a file; names such as `<string>` stay as they are."""
    return file if file.startswith("<") else str(Path(file).absolute())


def _walk(traceback: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    while traceback is not None:
        yield traceback.tb_frame.f_code, traceback.tb_lineno or 0
        traceback = traceback.tb_next


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # from the author's own `__str__`, which may even exit
        text = ""
    name = type(error).__name__[:NAME_CHARS_MAX]
    return _readable(f"{name}: {text}" if text else name, CAUSE_CHARS_MAX)


def _readable(text: str, chars_max: int) -> str:
    """Cut a text, and replace lone surrogates, which JSON refuses."""
    return text[:chars_max].encode("utf-8", "replace").decode()


__all__ = ["FramesOf"]
