"""Imports of large libraries after the start: off the event loop, and in one thread at a time.

Python locks each module while it loads. If one thread loads `sdk.client`, which imports `sdk.messages`, while another
loads `sdk.messages`, which imports `sdk.client`, each holds what the other waits for. Python ends such a deadlock with
a half-loaded module or an error, and one of the imports fails, or both. The two transports of the MCP SDK enter it in
different orders; so do the SDK and httpx enter `importlib.resources`.

Threads that enter a library by the same name cannot block each other and need nothing of this (`yaml`,
`jsonschema_rs`).
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
    """Run `load`, which imports what it needs, in a thread, and return its result. Raises: what `load` raises."""

    def load_alone() -> _T:
        with _importing:
            return load(*args, **options)

    return await asyncio.to_thread(load_alone)


__all__ = ["import_in_thread"]
