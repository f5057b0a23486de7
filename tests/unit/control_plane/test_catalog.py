"""Names of flows as earlier control planes stored them."""

from __future__ import annotations

import asyncio

import pytest

from control_plane.catalog import Catalog, read_name
from stepflow.errors import Invalid
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Put, Txn, keys
from stepflow.store.sqlite.store import SqliteStore


def test_a_flow_that_an_earlier_control_plane_moved_to_the_end_is_not_the_newest_version() -> None:
    versions = [state_pb2.NamedVersion(flow_id=flow, version=number) for flow, number in (("two", 2), ("one", 1))]
    stored = state_pb2.FlowName(versions=versions).SerializeToString()
    assert [version.flow_id for version in read_name(stored).versions] == ["one", "two"]


def test_a_new_name_or_label_has_no_at_sign_and_a_stored_one_gets_further_versions() -> None:
    async def main() -> list[str]:
        store = await SqliteStore.open(":memory:")
        catalog = Catalog(store)
        with pytest.raises(Invalid, match="has no @") as name:
            await catalog.add_version("mail@night", "one")
        with pytest.raises(Invalid, match="has no @") as label:
            await catalog.add_version("mail", "one", "live@night")

        old = state_pb2.FlowName(versions=[state_pb2.NamedVersion(flow_id="one", version=1, labels=["a@b"])])
        await store.txn(Txn((), (Put(keys.flow_name("mail@night"), old.SerializeToString()),)))
        assert (await catalog.add_version("mail@night", "two", "a@b")).version == 2
        await store.close()
        return [name.value.reason, label.value.reason]

    assert asyncio.run(main()) == ["FLOW_NAME_INVALID", "LABEL_INVALID"]
