"""Which changes of statuses give the leader work."""

from __future__ import annotations

from typing import Literal

import pytest

from control_plane.waits import _matters
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import KeyValue, StoreEvent, keys


def event(kind: Literal["put", "delete"], version: int, value: bytes) -> StoreEvent:
    return StoreEvent(kind, KeyValue(keys.status("run", 0), value, 1, version, version))


def status(status: pb.RunStatus, reason: str = "") -> bytes:
    return state_pb2.PartitionStatus(status=status, queued_reason=reason).SerializeToString()


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        (event("put", 1, status(pb.RUN_STATUS_RUNNING)), True),
        (event("put", 2, status(pb.RUN_STATUS_RUNNING, "no host for plugin p")), False),
        (event("put", 3, status(pb.RUN_STATUS_RUNNING)), False),
        (event("put", 4, status(pb.RUN_STATUS_COMPLETED)), True),
        (event("put", 2, b"\xff"), True),
        (event("delete", 2, b""), True),
    ],
    ids=["placed", "queued", "goes on", "ended", "unreadable", "deleted"],
)
def test_the_leader_looks_when_a_partition_comes_or_goes_not_when_it_waits(change: StoreEvent, matters: bool) -> None:
    assert _matters(change) is matters
