"""Names of flows as earlier control planes stored them."""

from __future__ import annotations

from control_plane.catalog import read_name
from stepflow.mesh.v1 import state_pb2


def test_a_flow_that_an_earlier_control_plane_moved_to_the_end_is_not_the_newest_version() -> None:
    versions = [state_pb2.NamedVersion(flow_id=flow, version=number) for flow, number in (("two", 2), ("one", 1))]
    stored = state_pb2.FlowName(versions=versions).SerializeToString()
    assert [version.flow_id for version in read_name(stored).versions] == ["one", "two"]
