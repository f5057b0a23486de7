"""Routes of a host whose configuration changes: what is written and deleted, and who may object."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from support import wait_for_value
from support.scripted_host import run_async, scripted

from component_host.registration import Registration
from stepflow.config import config_from_tree
from stepflow.errors import FailedPrecondition
from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys, range_all
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from stepflow.config import Config
    from stepflow.store import Store


def config_of(folder: Path, **routes: str) -> Config:
    """Return a configuration with these prefixes, each with the component that its rule allows."""
    tree = {
        "plugins": {"kit": {"type": "stepflow", "command": "python"}},
        "routes": {f"/{name}": [{"plugin": "kit", "componentAllow": [allowed]}] for name, allowed in routes.items()},
    }
    return config_from_tree(tree, source="test", base_dir=folder)


@asynccontextmanager
async def registered(store: Store, config: Config, *, replace: bool = True) -> AsyncIterator[Registration]:
    async with scripted() as (host, _, _):
        host.id = f"h-{config.digest[:8]}"
        registration = Registration(store, host, config, address="a:1", capacity=1, replace_routes=replace)
        try:
            await registration.start()
            yield registration
        finally:
            await registration.close()


async def stored(store: Store) -> list[str]:
    return [keys.tail(keys.ROUTES, item.key) async for item in range_all(store, keys.ROUTES)]


async def sessions(store: Store) -> list[dict[str, str]]:
    return [
        dict(state_pb2.HostSession.FromString(item.value).route_hashes)
        async for item in range_all(store, keys.HOST_SESSIONS)
    ]


def test_new_rules_replace_the_former_ones_together_with_the_session(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(":memory:")
        async with registered(store, config_of(tmp_path, a="/x", b="/x")) as registration:
            (before,) = await sessions(store)
            after = config_of(tmp_path, a="/y", c="/x")
            await registration.prepare_config(after)
            await registration.apply_routes(after)
            (session,) = await sessions(store)
            assert await stored(store) == sorted(session) == ["/a", "/c"]
            assert session["/a"] != before["/a"]
        await store.close()

    run_async(main)


def test_a_prefix_that_another_host_still_has_stays(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(":memory:")
        config = config_of(tmp_path, a="/x", b="/x")
        async with registered(store, config) as first, registered(store, config_of(tmp_path, b="/x")):
            await first.apply_routes(config_of(tmp_path, a="/x"))
            assert await stored(store) == ["/a", "/b"]
        await store.close()

    run_async(main)


def test_rules_that_another_host_claims_are_refused_before_anything_changes(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(":memory:")
        config = config_of(tmp_path, a="/x")
        async with registered(store, config, replace=False) as first, registered(store, config_of(tmp_path, b="/x")):
            before = await sessions(store)
            wanted = config_of(tmp_path, a="/x", b="/other")
            for act in (first.prepare_config, first.apply_routes):
                with pytest.raises(FailedPrecondition) as refused:
                    await act(wanted)
                assert refused.value.reason == "ROUTES_CLAIMED"
            assert await sessions(store) == before
            assert await stored(store) == ["/a", "/b"]
        await store.close()

    run_async(main)


def test_routes_changed_while_the_session_is_lost_come_with_the_next_one(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(":memory:")
        async with registered(store, config_of(tmp_path, a="/x")) as registration:
            registration._lost()
            await registration.apply_routes(config_of(tmp_path, b="/x"))
            await wait_for_value(
                lambda: sessions(store), "it is registered again", lambda found: [*map(sorted, found)] == [["/b"]]
            )
            assert "/b" in await stored(store)
        await store.close()

    run_async(main)
