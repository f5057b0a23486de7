"""Restarts by hand, and a configuration read again: what a host does with each of its plugins."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from support.scripted_host import Scripted, error_from, run_async, scripted

from component_host.plugin_changes import PluginChanges, Reload
from component_host.replacements import PluginOutcome
from component_host.supervision.start_retries import StartRetries
from stepflow.config import BuiltinPlugin, Config, GrpcPlugin, McpPlugin, StepflowPlugin, load_config
from stepflow.config.restart_ways import overlaps, why_no_server
from stepflow.errors import FailedPrecondition, Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from component_host.backend import Backend
    from stepflow.config import PluginConfig

KIT = "kit: {type: stepflow, command: python, args: [kit.py]}"
OTHER = "other: {type: stepflow, command: python, args: [other.py]}"


def config_text(*plugins: str, routes: str = "/kit: [{plugin: kit}]") -> str:
    return "plugins:\n" + "".join(f"  {plugin}\n" for plugin in plugins) + f"routes:\n  {routes}\n"


class Routes:
    """The registration, as used by changes."""

    def __init__(self) -> None:
        self.applied: list[list[str]] = []
        self.refusal: FailedPrecondition | None = None

    def changed(self) -> None:
        """Rewrite nothing."""

    async def prepare_config(self, config: Config) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def apply_routes(self, config: Config) -> None:
        self.applied.append(list(config.routes))


class Scene:
    """A host with a configuration file; `made` are the backends built for changes."""

    def __init__(self, path: Path, changes: PluginChanges, made: list[Scripted], routes: Routes) -> None:
        self.path = path
        self.changes = changes
        self.made = made
        self.routes = routes
        self.next_error: Exception | None = None

    async def reload(self, text: str) -> Reload:
        self.path.write_text(text)
        return await self.changes.reload()


@asynccontextmanager
async def scene(folder: Path, text: str = "", *backends: Scripted) -> AsyncIterator[tuple[Scene, Scripted]]:
    """Run a host with one plugin `kit`, or with these backends."""
    path = folder / "stepflow-config.yml"
    path.write_text(text or config_text(KIT))
    made: list[Scripted] = []
    routes = Routes()

    async with scripted(*backends) as (host, first, _):

        def make(name: str, config: Config) -> Backend:
            if current.next_error is not None:
                error, current.next_error = current.next_error, None
                if isinstance(error, Invalid):
                    raise error
                made.append(Scripted(name, error))
            else:
                made.append(Scripted(name))
            return made[-1]

        retries = StartRetries(host.plugins, lambda name: make(name, current.changes.config))
        current = Scene(path, PluginChanges(host, load_config(path), make, routes, retries), made, routes)
        try:
            yield current, first
        finally:
            await current.changes.close()
            await retries.close()


def test_a_restart_by_hand_makes_a_new_server_of_the_same_configuration(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as (current, former):
            assert await current.changes.restart("kit") == PluginOutcome("kit", "restarted")
            assert await current.changes.restart("kit") == PluginOutcome("kit", "restarted")
            assert [backend.starts for backend in current.made] == [1, 1]
            assert current.made[1].health.restarts == 2
            await asyncio.sleep(0)
            assert former.closed == 1
            error = await error_from(current.changes.restart("nope"))
            assert isinstance(error, NotFound)
            assert error.reason == "PLUGIN_UNKNOWN"

    run_async(main)


def test_a_plugin_that_did_not_start_is_tried_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        broken = Scripted("kit", Unavailable("SERVER_EXITED", "no"))
        async with scene(tmp_path, "", broken) as (current, _):
            current.next_error = Unavailable("SERVER_EXITED", "still no")
            assert await current.changes.restart("kit") == PluginOutcome("kit", "failed", "still no")
            assert await current.changes.restart("kit") == PluginOutcome("kit", "restarted")

    run_async(main)


def test_only_plugins_that_differ_are_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as (current, former):
            assert await current.reload(config_text(KIT) + "# a remark\n") == Reload()
            assert (current.made, former.closed) == ([], 0)

            changed = await current.reload(config_text(KIT.replace("kit.py]", "kit.py], env: {A: b}")))
            assert changed == Reload((PluginOutcome("kit", "restarted"),))
            assert len(current.made) == 1

    run_async(main)


def test_plugins_and_routes_come_and_go(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as (current, former):
            both = config_text(KIT, OTHER, routes="/kit: [{plugin: kit}]\n  /other: [{plugin: other}]")
            added = await current.reload(both)
            assert added == Reload((PluginOutcome("other", "added"),), routes_added=("/other",))
            assert current.routes.applied[-1] == ["/kit", "/other"]

            moved = await current.reload(config_text(KIT, OTHER, routes="/kit: [{plugin: other}]"))
            assert moved == Reload(
                (PluginOutcome("kit", "removed"),), routes_removed=("/other",), routes_changed=("/kit",)
            )
            await asyncio.sleep(0)
            assert former.closed == 1
            assert current.made[0].closed == 0

    run_async(main)


def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as (current, former):
            error = await error_from(current.reload("plugins: {kit: {type: nonsense}}\nroutes: {}\n"))
            assert error.reason == "CONFIG_INVALID"
            current.path.unlink()
            assert (await error_from(current.changes.reload())).reason == "CONFIG_NOT_FOUND"
            current.routes.refusal = FailedPrecondition("ROUTES_CLAIMED", "another host has them")
            assert (await error_from(current.reload(config_text(OTHER, routes="/o: [{plugin: other}]")))).reason == (
                "ROUTES_CLAIMED"
            )
            assert (current.made, former.closed, current.routes.applied) == ([], 0, [])

    run_async(main)


@pytest.mark.parametrize(
    "error", [Unavailable("SERVER_EXITED", "SyntaxError"), Invalid("CONFIG_INVALID", "`TOKEN` is not set")]
)
def test_a_changed_plugin_that_does_not_start_is_kept_and_tried_with_the_next_reload(
    tmp_path: Path, error: Exception
) -> None:
    text = config_text(KIT.replace("kit.py", "other.py"))

    async def main() -> None:
        async with scene(tmp_path) as (current, former):
            current.next_error = error
            assert await current.reload(text) == Reload((PluginOutcome("kit", "kept", str(error)),))
            assert former.closed == 0
            assert await current.reload(text) == Reload((PluginOutcome("kit", "restarted"),))

    run_async(main)


def test_a_new_plugin_that_does_not_start_is_a_failed_one_and_the_rest_is_applied(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as (current, _):
            both = config_text(KIT, OTHER, routes="/kit: [{plugin: kit}]\n  /other: [{plugin: other}]")
            current.next_error = Invalid("CONFIG_INVALID", "`TOKEN` is not set")
            done = await current.reload(both)
            assert done == Reload((PluginOutcome("other", "failed", "`TOKEN` is not set"),), routes_added=("/other",))
            assert await current.changes.restart("other") == PluginOutcome("other", "restarted")

    run_async(main)


def test_a_server_that_insists_on_the_port_of_the_former_one_starts_after_its_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as (current, former):
            current.next_error = Unavailable("SERVER_EXITED", "OSError: [Errno 98] Address already in use")
            assert await current.changes.restart("kit") == PluginOutcome("kit", "restarted")
            assert [backend.closed for backend in (former, *current.made)] == [1, 1, 0]

    run_async(main)


def test_changes_come_one_after_another_and_outlive_their_callers(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as (current, _):
            first = asyncio.create_task(current.changes.restart("kit"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert current.changes._turn.locked(), "the first change has begun"
            second = asyncio.create_task(current.changes.restart("kit"))
            await asyncio.sleep(0)
            first.cancel()
            assert await second == PluginOutcome("kit", "restarted")
            assert len(current.made) == 2
            assert current.made[1].health.restarts == 2

    run_async(main)


def test_a_storm_of_equal_changes_is_one_change(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as (current, _):
            await current.changes._turn.acquire()  # another change is under way
            restarts = [asyncio.create_task(current.changes.restart("kit")) for _ in range(50)]
            reloads = [asyncio.create_task(current.changes.reload()) for _ in range(50)]
            await asyncio.sleep(0)
            for gone in (restarts.pop(), reloads.pop()):
                gone.cancel()
            current.changes._turn.release()
            assert set(await asyncio.gather(*restarts)) == {PluginOutcome("kit", "restarted")}
            assert set(await asyncio.gather(*reloads)) == {Reload()}
            assert len(current.made) == 1
            assert len(current.routes.applied) == 1

            assert await current.changes.restart("kit") == PluginOutcome("kit", "restarted")
            assert len(current.made) == 2

    run_async(main)


def test_a_change_under_way_ends_with_the_host(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as (current, _):
            current.changes._turn = asyncio.Lock()
            await current.changes._turn.acquire()
            waiting = asyncio.create_task(current.changes.restart("kit"))
            await asyncio.sleep(0)
            await current.changes.close()
            assert (await error_from(waiting)).reason == "SERVICE_STOPPING"
            assert current.made == []

    run_async(main)


STDIO = StepflowPlugin(command="python")
SHARED_PORT = McpPlugin(transport="streamable-http", command="python", url="http://127.0.0.1:8080/mcp")


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (STDIO, ""),
        (BuiltinPlugin(), "builtin components are part of the host"),
        (StepflowPlugin(transport="http", url="https://user:pw@a/b?key=1"), "its server runs at https://a/b"),
        (McpPlugin(transport="streamable-http", url="http://${HOST}/mcp"), "its server runs at http://${HOST}/mcp"),
        (GrpcPlugin(queue_name="q"), "its workers are started elsewhere"),
        (SHARED_PORT, ""),
    ],
)
def test_a_plugin_without_a_server_here_says_where_it_is(plugin: PluginConfig, text: str) -> None:
    assert why_no_server(plugin).startswith(text)
    assert bool(why_no_server(plugin)) is bool(text)


@pytest.mark.parametrize(
    ("plugin", "both"),
    [
        (STDIO, True),
        (McpPlugin(transport="streamable-http", command="python", url="http://127.0.0.1:{port}/mcp"), True),
        (SHARED_PORT, False),
        (GrpcPlugin(queue_name="q", command="python"), True),
        (GrpcPlugin(queue_name="q", command="python", listen="127.0.0.1:7000"), False),
        (GrpcPlugin(queue_name="q"), False),
    ],
)
def test_servers_with_one_port_or_one_queue_cannot_overlap(plugin: PluginConfig, both: bool) -> None:
    assert overlaps(plugin) is both
