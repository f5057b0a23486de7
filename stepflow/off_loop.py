"""Work on large values, in a thread instead of on the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

INLINE_WORK_BYTES_MAX = 256 * 1024
"""Bytes worked on on the event loop, in a millisecond or two; more go to a thread."""

INLINE_WORK_ITEMS_MAX = 100
"""Values worked on on the event loop, however small; more go to a thread."""


async def off_loop(size: int, work: Callable[..., _T], *arguments: Any, items: int = 1, **options: Any) -> _T:
    """Run `work` on `items` values of `size` bytes together; in a thread if they are large or many."""
    if size <= INLINE_WORK_BYTES_MAX and items <= INLINE_WORK_ITEMS_MAX:
        return work(*arguments, **options)
    return await asyncio.to_thread(work, *arguments, **options)


__all__ = ["INLINE_WORK_BYTES_MAX", "off_loop"]
