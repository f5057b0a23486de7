"""The log lines of the component servers of a mesh on this machine, from its hosts.

Best effort: a stream that breaks is opened again, and the lines that the host has kept come again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stepflow.log_lines import StepLog, lines_from_pb
from stepflow.rpc.channel import open_channel
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from stepflow.mesh.v1 import host_pb2

log = get_logger(__name__)

LOOK_S = 0.5
"""Interval of looking for hosts that are new or were restarted."""


async def follow_hosts(addresses: Callable[[], Mapping[str, str]], show: Callable[[StepLog], None]) -> None:
    """Pass on the log lines of all hosts, until cancelled. `addresses` returns those of the services, by name."""
    streams: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            for name, address in addresses().items():
                if name.startswith("host-") and address and (address not in streams or streams[address].done()):
                    streams[address] = asyncio.create_task(_follow(address, show), name=f"logs of {name}")
            await asyncio.sleep(LOOK_S)
    finally:
        for task in streams.values():
            task.cancel()
        await asyncio.gather(*streams.values(), return_exceptions=True)


async def _follow(address: str, show: Callable[[StepLog], None]) -> None:
    import grpc

    from stepflow.mesh.v1 import host_pb2, host_pb2_grpc

    async def requests() -> AsyncIterator[host_pb2.FollowLogsRequest]:
        yield host_pb2.FollowLogsRequest(follow_all=True)
        await asyncio.Event().wait()  # the stream stays open

    channel = open_channel(address)
    try:
        stub: Any = host_pb2_grpc.ComponentHostServiceStub(channel)
        async for response in stub.FollowLogs(requests()):
            for told in response.logs:
                show(_plugin_log(told))
    except grpc.aio.AioRpcError as failed:
        log.debug("no logs of a host", address=address, code=failed.code().name)
    finally:
        await channel.close()


def _plugin_log(told: host_pb2.CallLog) -> StepLog:
    """Return lines with the label of their plugin."""
    return StepLog("", told.item, told.plugin, 0, told.component, 0, 0, lines_from_pb(told.lines), told.dropped)


__all__ = ["follow_hosts"]
