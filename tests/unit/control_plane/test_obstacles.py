"""Obstacles: why no run can begin, and why a run is queued."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane.obstacles import executor_obstacle, host_obstacle, host_wait_reason, queued_reason
from control_plane.views import run_view
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys

READY = state_pb2.PluginListing(plugin="p", state=state_pb2.PluginListing.STATE_READY)
FAILED = state_pb2.PluginListing(plugin="p", state=state_pb2.PluginListing.STATE_FAILED)


def executor(*, runs_max: int = 2, draining: bool = False) -> state_pb2.ExecutorSession:
    return state_pb2.ExecutorSession(runs_max=runs_max, draining=draining)


def host(*plugins: state_pb2.PluginListing, draining: bool = False) -> state_pb2.HostSession:
    return state_pb2.HostSession(plugins=plugins, draining=draining)


@pytest.mark.parametrize(
    ("executors", "runs", "said"),
    [
        ({}, {}, "no executor is registered"),
        ({"a": executor(draining=True)}, {}, "every executor drains (a)"),
        ({"a": executor()}, {"a": 2}, "every executor is full (a)"),
        ({"a": executor(), "b": executor(draining=True)}, {"a": 2}, "every executor is full (a)"),
        ({name: executor(draining=True) for name in "abcde"}, {}, "(a, b, c and 2 more)"),
    ],
)
def test_an_obstacle_names_the_executors_that_accept_no_run(
    executors: dict[str, state_pb2.ExecutorSession], runs: dict[str, int], said: str
) -> None:
    assert said in executor_obstacle(executors, runs)


def test_there_is_no_obstacle_while_one_executor_and_one_plugin_accept_work() -> None:
    assert executor_obstacle({"a": executor(), "b": executor(draining=True)}, {"a": 1}) == ""
    assert host_obstacle({"a": host(FAILED), "b": host(READY), "c": host(draining=True)}) == ""


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ({}, "no component host is registered"),
        ({"a": host(READY, draining=True)}, "every component host drains (a)"),
        ({"a": host(FAILED), "b": host(READY, draining=True)}, "no plugin is ready on any component host (a)"),
    ],
)
def test_an_obstacle_names_the_hosts_that_accept_no_call(hosts: dict[str, state_pb2.HostSession], said: str) -> None:
    assert said in host_obstacle(hosts)


@pytest.mark.parametrize(
    ("owner", "pending", "sessions", "said"),
    [
        ("a", False, {"a": executor(draining=True)}, ""),  # driven until it is handed over
        ("", False, {"a": executor()}, ""),  # the view lags behind the admission
        ("", True, {"a": executor()}, "the leader has not placed it yet"),
        ("", True, {}, "no executor is registered"),
        ("gone", False, {"a": executor(draining=True)}, "every executor drains (a)"),
        ("gone", False, {"a": executor()}, "the leader has not placed it yet"),
        (f"{keys.RETURNED}a", False, {"a": executor()}, "executor a could not drive it and gave it back"),
    ],
)
def test_a_run_without_a_living_owner_is_queued_with_the_reason(
    owner: str, pending: bool, sessions: dict[str, state_pb2.ExecutorSession], said: str
) -> None:
    cluster: Any = SimpleNamespace(
        sessions=sessions,
        owners={"run": Counter([owner])} if owner else {},
        assignments={owner: {("run", 0): 1}} if owner else {},
        pending={"run"} if pending else set(),
    )
    reason = queued_reason(cluster, "run")
    assert reason.startswith(said)
    assert bool(reason) is bool(said)


def status(*, waits: str = "", epoch: int = 0, ended: bool = False) -> state_pb2.PartitionStatus:
    return state_pb2.PartitionStatus(
        status=pb.RUN_STATUS_COMPLETED if ended else pb.RUN_STATUS_RUNNING, queued_reason=waits, queued_epoch=epoch
    )


@pytest.mark.parametrize(
    ("partitions", "epochs", "said"),
    [
        ([status(waits="no host", epoch=5)], [5], "no host"),
        ([status()], [5], ""),
        ([status(waits="no host", epoch=4)], [5], ""),  # told by a former owner
        ([status(waits="no host", epoch=5), status()], [5, 6], ""),  # another partition goes on
        ([status(waits="no host", epoch=5), status(ended=True)], [5, 0], "no host"),
    ],
)
def test_a_run_waits_for_a_host_if_all_its_live_partitions_do(
    partitions: list[state_pb2.PartitionStatus], epochs: list[int], said: str
) -> None:
    cluster: Any = SimpleNamespace(
        owners={"run": Counter(["a"])},
        assignments={"a": {("run", number): epoch for number, epoch in enumerate(epochs)}},
    )
    record = state_pb2.RunRecord(items_total=64 * len(partitions), items_per_partition=64)
    assert host_wait_reason(cluster, run_view("run", record, partitions)) == said
