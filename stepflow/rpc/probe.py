"""Telling a process that has ended from one that cannot be reached: its address refuses, or is silent.

A refused connection comes from the other machine's kernel: nobody listens there. Anything else (a time-out, no route)
says nothing about the process.
"""

from __future__ import annotations

import asyncio
import contextlib

PROBE_TIMEOUT_S = 1.0


async def refuses(address: str) -> bool:
    """Say whether HOST:PORT refuses connections just now."""
    return await _dial(address) is False


async def accepts(address: str) -> bool:
    """Say whether HOST:PORT accepts connections just now."""
    return await _dial(address) is True


async def _dial(address: str) -> bool | None:
    """Return whether the address accepts a connection or refuses it; None when neither can be said."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return False
    except (OSError, TimeoutError, ValueError):
        return None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


__all__ = ["accepts", "refuses"]
