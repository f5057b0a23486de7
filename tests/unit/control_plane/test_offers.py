"""The catalogue that a control plane makes of routes and sessions of hosts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_for_value

from control_plane import mesh_catalogue, offers
from control_plane.mesh_catalogue import make_catalogue
from control_plane.offers import LEFT_HOST_S, MeshOffers
from stepflow.codec import encode
from stepflow.mesh.v1 import state_pb2
from stepflow.routing.stored import encode_rules
from stepflow.routing.table import Rule
from stepflow.store import Delete, Put, Txn, keys
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

STARTING, READY, FAILED, RESTARTING = (
    state_pb2.PluginListing.STATE_STARTING,
    state_pb2.PluginListing.STATE_READY,
    state_pb2.PluginListing.STATE_FAILED,
    state_pb2.PluginListing.STATE_RESTARTING,
)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}


def routes(**plugins: str) -> dict[str, bytes]:
    """Return stored rules: each plugin of a type under a route of its name."""
    return {f"/{name}": encode_rules((Rule(name),), {name: kind})[0] for name, kind in plugins.items()}


def plugin(name: str, *components: str, schema: Any = None, **members: Any) -> state_pb2.PluginListing:
    listed = [
        state_pb2.ComponentListing(
            component=f"/{one}", path=f"/{one}", input_schema_json=b"" if schema is None else encode(schema)
        )
        for one in components
    ]
    members = {"type": "stepflow", "state": READY, "complete": True, **members}
    return state_pb2.PluginListing(plugin=name, components=listed, **members)


def host(*plugins: state_pb2.PluginListing, **members: Any) -> bytes:
    return state_pb2.HostSession(plugins=plugins, **members).SerializeToString()


def test_a_catalogue_has_the_components_of_all_hosts_with_their_schemas() -> None:
    found = make_catalogue(
        routes(mine="stepflow"), [host(plugin("mine", "a", schema=SCHEMA)), host(plugin("mine", "b"))], frozenset()
    )
    mine = found.plugins["mine"]
    assert [(one.component, one.input_schema) for one in mine.components] == [("/a", SCHEMA), ("/b", None)]
    assert mine.is_complete
    assert found.has_all_routes
    assert found.find("/mine/a").component is mine.components[0]
    problem = found.find("/mine/c").problem
    assert problem is not None
    assert problem.reason == "not_listed"


@pytest.mark.parametrize(
    "other",
    [
        host(plugin("mine", complete=False)),
        host(plugin("mine", state=STARTING)),
        host(plugin("mine", state=FAILED)),
    ],
    ids=["has an open list", "starts the plugin", "failed to start it"],
)
def test_a_list_is_incomplete_while_another_host(other: bytes) -> None:
    found = make_catalogue(routes(mine="stepflow"), [host(plugin("mine", "a")), other], frozenset())
    assert not found.plugins["mine"].is_complete
    assert found.find("/mine/b").unlisted == "mine"


def test_a_plugin_without_a_host_is_unknown_and_said_to_have_none() -> None:
    sessions = [host(plugin("mine", "a"), draining=True), host(plugin("mine", conflict=True, state=FAILED))]
    found = make_catalogue(routes(mine="stepflow"), sessions, frozenset())
    assert found.plugins == {}
    assert found.unhosted == {"mine"}


def test_a_plugin_that_no_host_could_start_is_unknown_and_not_waited_for() -> None:
    found = make_catalogue(routes(mine="stepflow"), [host(plugin("mine", state=FAILED))], frozenset())
    assert (found.plugins, found.unhosted) == ({}, frozenset())


def test_components_of_the_engine_need_no_host() -> None:
    found = make_catalogue(routes(builtin="builtin"), [], frozenset())
    assert found.unhosted == frozenset()
    assert found.find("/builtin/map").component is not None
    assert found.find("/builtin/openai").unlisted == "builtin"
    assert not found.has_all_routes


def test_a_component_with_two_schemas_has_none() -> None:
    sessions = [host(plugin("mine", "a", schema=SCHEMA)), host(plugin("mine", "a", schema={"type": "string"}))]
    found = make_catalogue(routes(mine="stepflow"), sessions, frozenset())
    assert [one.input_schema for one in found.plugins["mine"].components] == [None]


def test_what_cannot_be_read_is_left_out() -> None:
    stored = {**routes(mine="stepflow"), "/bad": b"{"}
    broken = plugin("mine", "a")
    broken.components[0].input_schema_json = b"{"
    found = make_catalogue(stored, [host(broken)], frozenset())
    assert set(found.routes) == {"/mine"}
    assert found.plugins["mine"].components[0].input_schema is None


def test_schemas_beyond_the_bound_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_catalogue, "SCHEMAS_BYTES_MAX", len(encode(SCHEMA)))
    other = plugin("mine", "b", schema={"type": "string"})
    found = make_catalogue(
        routes(mine="stepflow"), [host(plugin("mine", "a", schema=SCHEMA)), host(other)], frozenset()
    )
    assert [one.input_schema for one in found.plugins["mine"].components] == [SCHEMA, None]


# --- following --------------------------------------------------------------------------------------------------------


class World:
    """A store, what follows it, and a clock."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.now_s = 1_000.0
        self.offers = MeshOffers(store, lambda: self.now_s)

    async def put(self, **values: bytes) -> None:
        """Register hosts; an empty value removes one."""
        ops = [
            Put(keys.session_host(name), value) if value else Delete(keys.session_host(name))
            for name, value in values.items()
        ]
        await self.store.txn(Txn((), tuple(ops)))

    async def until(self, wanted: Callable[[offers.MeshCatalogue], bool]) -> offers.MeshCatalogue:
        """Return the catalogue once it is as wanted."""
        return await wait_for_value(self.offers.current, "the catalogue has changed", wanted)


def in_world(test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        store = await SqliteStore.open(":memory:")
        world = World(store)
        try:
            stored = routes(mine="stepflow")
            await store.txn(Txn((), tuple(Put(keys.route(prefix), text) for prefix, text in stored.items())))
            await test(world)
        finally:
            await world.offers.close()
            await store.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_catalogue_is_made_anew_only_when_what_hosts_offer_has_changed() -> None:
    async def main(world: World) -> None:
        await world.put(one=host(plugin("mine", "a")))
        first = await world.offers.current()
        assert world.offers.known() is first

        noted = state_pb2.HostSession.FromString(host(plugin("mine", "a")))
        noted.value_memory.waiting = 5
        await world.put(one=noted.SerializeToString(), two=host(plugin("mine", "a", "b")))
        second = await world.until(lambda made: made.revision != first.revision)
        assert len(second.catalogue.plugins["mine"].components) == 2
        assert second.revision == first.revision + 1

        noted.value_memory.waiting = 6
        await world.put(one=noted.SerializeToString(), three=host(capacity=1))
        await world.until(lambda _: "three" in world.offers._sessions)
        assert (await world.offers.current()).revision == second.revision

    in_world(main)


def test_what_only_a_departed_host_offered_is_no_error_for_a_while() -> None:
    async def main(world: World) -> None:
        await world.put(one=host(plugin("mine", "a")), two=host(plugin("mine", "a", "b")))
        assert (await world.offers.current()).catalogue.find("/mine/c").problem is not None

        await world.put(two=b"")
        made = await world.until(lambda made: len(made.catalogue.plugins["mine"].components) == 1)
        assert made.catalogue.find("/mine/b").unlisted == "mine"

        await world.put(three=host(plugin("mine", "a")))
        made = await world.until(lambda made: made.catalogue.find("/mine/b").problem is not None)

        await world.put(three=b"")
        await world.until(lambda made: made.catalogue.find("/mine/b").unlisted == "mine")
        world.now_s += LEFT_HOST_S
        assert world.offers.known() is None
        assert (await world.offers.current()).catalogue.find("/mine/b").problem is not None

    in_world(main)


def test_a_refresh_reads_what_the_watches_have_not_told() -> None:
    async def main(world: World) -> None:
        await world.put(one=host(plugin("mine", "a")))
        before = await world.offers.current()
        for task in world.offers._tasks:
            task.cancel()
        await world.put(one=host(plugin("mine", "a", "b")), two=host(plugin("mine", "c")))
        await asyncio.gather(*(world.offers.refresh() for _ in range(5)))
        made = await world.offers.current()
        assert made.revision == before.revision + 1
        assert [one.component for one in made.catalogue.plugins["mine"].components] == ["/a", "/b", "/c"]
        assert world.offers._refreshes == 2, "the first, and one for those that came during it"

    in_world(main)


def test_without_an_answer_of_the_store_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        def watch(self, _prefix: str) -> Any:
            raise RuntimeError("the store is away")

    async def main() -> None:
        monkeypatch.setattr(offers, "FIRST_LIST_S", 0.01)
        away: Any = Away()
        following = MeshOffers(away)
        try:
            made = await following.current()
            assert (made.revision, made.catalogue.has_all_routes) == (0, False)
            assert following.known() is None
        finally:
            await following.close()

    asyncio.run(main())
