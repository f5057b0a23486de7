"""Probe an address: has its process ended, or is it unreachable?

A refused connection comes from the kernel of the other machine: no process listens there. Any other failure (a
time-out, no route) proves nothing about the process.
"""

from __future__ import annotations

import asyncio
import contextlib

PROBE_TIMEOUT_S = 1.0


async def refuses(address: str) -> bool:
    """Return True if HOST:PORT refuses connections."""
    return await _dial(address) is False


async def accepts(address: str) -> bool:
    """Return True if HOST:PORT accepts connections."""
    return await _dial(address) is True


async def _dial(address: str) -> bool | None:
    """Return True if the address accepts a connection, False if it refuses; None if neither is certain."""
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
