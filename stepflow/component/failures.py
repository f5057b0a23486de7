"""The error answer of a failed call: message, failure code and details, for any exception of an author's code."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from stepflow.component.call import LOG
from stepflow.component.errors import CallCancelled, ComponentError, ResourceUnavailable
from stepflow.component.wire import LINE_BYTES_MAX, error_line

if TYPE_CHECKING:
    from stepflow.component.call import ComponentCall

MESSAGE_CHARS_MAX = 16 * 1024
"""Longest text of a failure; the text is stored with the run."""


NAME_CHARS_MAX = 200
"""Longest name of an exception's class."""


def _working_directory() -> str:
    try:
        return os.getcwd() + os.sep  # noqa: PTH109  # pathlib would delay the start of each server
    except OSError:  # the directory is gone
        return ""


_FOLDER = _working_directory()
"""The server's folder, at the start: a component may change the directory later."""


def failure_line(call: ComponentCall, error: BaseException, code: int, *, show_traceback: bool) -> bytes:
    """Return the error line of a failed call; `code` is the JSON-RPC code. From any thread.

    Never raises, not even for an exception whose own methods raise. Details too large, or without JSON form, are left
    out. The data have the exception's frames; the message of an unexpected exception ends in the innermost one of the
    author's code. A `ComponentError` keeps the message that its author gave it.
    """
    message, data = _message_and_data(call, error)
    if not isinstance(error, CallCancelled | asyncio.CancelledError):
        message += _add_frames(data, error, call)
    if show_traceback:
        import traceback

        data["traceback"] = _bounded("".join(traceback.format_exception(error)))
    LOG.debug("component %s failed: %s", call.component.path, data["exception_type"], exc_info=error)

    try:
        line = error_line(call.id, code, message, data)
        if len(line) <= LINE_BYTES_MAX:
            return line
    except Exception:  # the details have no JSON form
        LOG.debug("the data of a ComponentError could not be written as JSON", exc_info=True)

    data.pop("details", None)
    return error_line(call.id, code, message, data)


def _add_frames(data: dict[str, Any], error: BaseException, call: ComponentCall) -> str:
    """Add the frames of an exception to the data; return the end of its message."""
    try:
        from stepflow.component.frames import FramesOf  # imported with the first failure

        found = FramesOf(error, call.component.function, _FOLDER)
    except Exception:  # an odd frame, or exception, of the author's
        LOG.debug("the frames of an exception could not be read", exc_info=True)
        return ""

    data |= {"frames": found.frames} if found.frames else {}
    data |= {"causes": found.causes} if found.causes else {}
    innermost = found.innermost()
    return f" ({innermost})" if innermost and not isinstance(error, ComponentError) else ""


def _message_and_data(call: ComponentCall, error: BaseException) -> tuple[str, dict[str, Any]]:
    name = _bounded(type(error).__name__, NAME_CHARS_MAX)
    data: dict[str, Any] = {"exception_type": name, "error_code": ComponentError.error_code}
    try:
        text = _bounded(str(error))
    except BaseException:  # from the author's own `__str__`, which may even exit
        text = ""

    if isinstance(error, ComponentError):
        data["error_code"] = error.error_code
        # A subclass may not call the base class's __init__.
        if (details := getattr(error, "data", None)) is not None:
            data["details"] = details
        return text or name, data

    if isinstance(error, asyncio.CancelledError) and call.cancelled:
        data["error_code"] = CallCancelled.error_code
        return "the call was cancelled", data

    if isinstance(error, OSError):  # connections, time-outs, missing files
        data["error_code"] = ResourceUnavailable.error_code
    return f"{name}: {text}" if text else name, data


def _bounded(text: str, chars_max: int = MESSAGE_CHARS_MAX) -> str:
    """Cut a text to the limit, and replace lone surrogates (from undecodable file names), which JSON refuses."""
    return text[:chars_max].encode("utf-8", "replace").decode()
