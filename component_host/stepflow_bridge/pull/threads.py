"""Conversions of large messages, in a thread."""

from __future__ import annotations

import asyncio
from typing import Any

THREAD_BYTES_MIN = 256 * 1024
"""Larger messages are converted in a thread: the conversion takes some milliseconds."""


async def in_thread(size: int, work: Any, *arguments: Any) -> Any:
    """Call `work`, in a thread if `size` bytes is much."""
    if size < THREAD_BYTES_MIN:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
