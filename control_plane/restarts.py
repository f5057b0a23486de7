"""Restarts of a plugin's servers, on one host after another: the others serve meanwhile.

The roll ends with the first host without success: the same server would fail there, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from stepflow.errors import FailedPrecondition, NotFound, StepflowError
from stepflow.mesh.v1 import host_pb2, host_pb2_grpc, state_pb2
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of
from stepflow.store import keys, range_all

if TYPE_CHECKING:
    from stepflow.rpc.tls import Tls
    from stepflow.store import Store

HOST_TIMEOUT_S = 150.0
"""For one host: the start of a server, and the end of calls in the former one. The host goes on after it."""

SUCCESSES = ("restarted", "no_server")


@dataclass(frozen=True, slots=True)
class HostOutcome:
    """What happened on one host. `outcome` is as in `HostRestart` of the API."""

    host_id: str
    outcome: str
    detail: str = ""


class Restarts:
    """The restarts of a mesh: calls hosts at the addresses of their sessions."""

    def __init__(self, store: Store, tls: Tls | None = None) -> None:
        self._store = store
        self._tls = tls

    async def restart(self, plugin: str, host_id: str = "") -> list[HostOutcome]:
        """Restart a plugin on the named host, or on all hosts that have it.

        Raises: NotFound PLUGIN_UNKNOWN, HOST_NOT_FOUND; Unavailable, the store does not answer.
        """
        outcomes: list[HostOutcome] = []
        for identity, address in (await self._hosts(plugin, host_id)).items():
            if outcomes and outcomes[-1].outcome not in SUCCESSES:
                outcomes += [HostOutcome(identity, "not_tried", f"{outcomes[-1].host_id} had no success")]
            else:
                outcomes.append(await self._restart(plugin, identity, address))
        return outcomes

    async def _hosts(self, plugin: str, host_id: str) -> dict[str, str]:
        """Return the addresses of the hosts that have a plugin, by host id."""
        sessions = {
            keys.tail(keys.HOST_SESSIONS, item.key): state_pb2.HostSession.FromString(item.value)
            async for item in range_all(self._store, keys.HOST_SESSIONS)
        }
        if host_id:
            if host_id not in sessions:
                raise NotFound("HOST_NOT_FOUND", f"there is no host {host_id}", host_id=host_id)
            sessions = {host_id: sessions[host_id]}

        having = {
            identity: session.address
            for identity, session in sessions.items()
            if any(listing.plugin == plugin for listing in session.plugins)
        }
        if not having:
            known = sorted({listing.plugin for session in sessions.values() for listing in session.plugins})
            where = f"host {host_id} has" if host_id else "the live hosts have"
            names = ", ".join(known) or "none"
            raise NotFound("PLUGIN_UNKNOWN", f"no plugin {plugin!r}: {where} {names}", plugin=plugin)
        return having

    async def _restart(self, plugin: str, host_id: str, address: str) -> HostOutcome:
        channel = open_channel(address, self._tls)
        stub: Any = host_pb2_grpc.ComponentHostServiceStub(channel)
        request = host_pb2.RestartHostPluginRequest(plugin=plugin)
        try:
            change = (await stub.RestartHostPlugin(request, timeout=HOST_TIMEOUT_S)).change
        except grpc.aio.AioRpcError as failed:
            return _failed(host_id, error_of(failed))
        finally:
            await channel.close()
        return HostOutcome(host_id, change.outcome, change.detail)


def _failed(host_id: str, error: StepflowError) -> HostOutcome:
    if isinstance(error, FailedPrecondition) and error.reason == "CALL_UNKNOWN":
        return HostOutcome(host_id, "unsupported", "the host is of an earlier version; restart its process instead")
    if error.reason == "CALL_TIMEOUT":
        text = f"no answer within {HOST_TIMEOUT_S:g} s; the restart goes on there"
        return HostOutcome(host_id, "unreachable", text)
    return HostOutcome(host_id, "unreachable", error.message)


__all__ = ["HostOutcome", "Restarts"]
