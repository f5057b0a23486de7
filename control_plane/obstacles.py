"""Obstacles: why no run can begin or make progress at present, as texts for people.

`stepflow cluster status` shows all of them, and a queued run shows the one that keeps it waiting. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.cluster import owner_epoch
from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from control_plane.cluster import Cluster
    from control_plane.view_records import RunView

IDS_SHOWN = 3
"""Ids listed in one text."""


def executor_obstacle(executors: Mapping[str, state_pb2.ExecutorSession], runs: Mapping[str, int]) -> str:
    """Return why no executor accepts a run; empty if one does. `runs`: partitions owned, by executor."""
    if not executors:
        return "no executor is registered"

    accepting = {executor_id: session for executor_id, session in executors.items() if not session.draining}
    if not accepting:
        return f"every executor drains ({_ids(executors)}); {_undrain(executors)} ends a drain"

    if all(runs.get(executor_id, 0) >= session.runs_max for executor_id, session in accepting.items()):
        return f"every executor is full ({_ids(accepting)})"
    return ""


def _undrain(members: Iterable[str]) -> str:
    return f"`stepflow cluster undrain {min(members)}`"


def host_obstacle(hosts: Mapping[str, state_pb2.HostSession]) -> str:
    """Return why no component can be called; empty if one can."""
    if not hosts:
        return "no component host is registered"

    accepting = {host_id: session for host_id, session in hosts.items() if not session.draining}
    if not accepting:
        return f"every component host drains ({_ids(hosts)}); {_undrain(hosts)} ends a drain"

    ready = state_pb2.PluginListing.STATE_READY
    if not any(plugin.state == ready for session in accepting.values() for plugin in session.plugins):
        return f"no plugin is ready on any component host ({_ids(accepting)})"
    return ""


def blob_warnings(members: Mapping[str, state_pb2.ExecutorSession | state_pb2.HostSession]) -> list[str]:
    """Return a text for each executor and host whose blob store refuses blobs."""
    return [
        f"steps that need a blob wait: {identity} cannot use the blob store: {member.blob_error}"
        for identity, member in members.items()
        if member.blob_error
    ]


def plugin_warnings(hosts: Mapping[str, state_pb2.HostSession]) -> list[str]:
    """Return a text for each plugin that is two different servers within a pool: right during an update only."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for host_id, session in hosts.items():
        for plugin in session.plugins:
            if plugin.digest and not plugin.conflict:
                found.setdefault((session.pool, plugin.plugin), {}).setdefault(plugin.digest, host_id)

    return [
        f"plugin {name!r} is a different server on each of {_ids(servers.values())}, and its calls go to any of them; "
        "unless this is an update, start hosts of different configurations with different --pool names"
        for (_pool, name), servers in found.items()
        if len(servers) > 1
    ]


def queued_reason(cluster: Cluster, run_id: str) -> str:
    """Return why no executor drives a run that has not ended; empty if one does.

    Empty, too, while the cluster lags behind an admission or a hand-over.
    """
    owners = cluster.owners.get(run_id, ())
    if any(owner in cluster.sessions for owner in owners) or not (owners or run_id in cluster.pending):
        return ""

    runs = {executor_id: len(assigned) for executor_id, assigned in cluster.assignments.items()}
    obstacle = executor_obstacle(cluster.sessions, runs)
    if obstacle:
        return obstacle

    returned = [owner.removeprefix(keys.RETURNED) for owner in owners if owner.startswith(keys.RETURNED)]
    if returned:
        return f"executor {returned[0]} could not drive it and gave it back"
    return "the leader has not placed it yet"


def host_wait_reason(cluster: Cluster, view: RunView) -> str:
    """Return which host a run waits for that executors drive; empty if it goes on, or if the owners have changed."""
    if all(owner_epoch(cluster, view.run_id, wait.partition) == wait.epoch for wait in view.host_waits):
        return next((wait.reason for wait in view.host_waits), "")
    return ""


def _ids(found: Collection[str]) -> str:
    shown = ", ".join(sorted(found)[:IDS_SHOWN])
    return shown + (f" and {len(found) - IDS_SHOWN:,} more" if len(found) > IDS_SHOWN else "")


__all__ = [
    "blob_warnings",
    "executor_obstacle",
    "host_obstacle",
    "host_wait_reason",
    "plugin_warnings",
    "queued_reason",
]
