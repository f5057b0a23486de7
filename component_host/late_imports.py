"""Imports of large libraries after the start: off the event loop, and in one thread at a time.

Python locks each module during the import. If one thread imports `sdk.client`, which imports `sdk.messages`, while
another imports `sdk.messages`, which imports `sdk.client`, the threads wait for each other. Python breaks such a
deadlock with a half-loaded module or an error, and one import fails, or both. The two transports of the MCP SDK enter
the SDK in different orders; the SDK and httpx do the same with `importlib.resources`.

Threads entering a library by the same module cannot block each other and need no lock (`yaml`, `jsonschema_rs`).
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")

_importing = threading.Lock()  # not asyncio's: a process may have several event loops


async def import_in_thread(load: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
    """Run `load`, a function with imports, in a thread and return its result. Raises: all errors of `load`."""

    def load_alone() -> _T:
        with _importing:
            return load(*args, **options)

    return await asyncio.to_thread(load_alone)


__all__ = ["import_in_thread"]
