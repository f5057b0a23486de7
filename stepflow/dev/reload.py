"""`stepflow dev --reload`: changed component files and configurations take effect in a running mesh.

- A changed file restarts the plugins that it belongs to (`sources`), on all hosts: a new server starts first, calls in
  flight end in the former one, and a server that does not start changes nothing.
- A changed configuration is read here first: one that is broken reaches no host. The hosts then read it themselves, and
  apply what differs. A changed `retry` section restarts the control plane, which alone uses it.

Not here: when files have changed (`file_watch`), and how a host replaces servers (`component_host.plugin_changes`).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepflow.config import reload_config
from stepflow.config.restart_ways import overlaps
from stepflow.dev.file_watch import FileWatch
from stepflow.dev.sources import first_syntax_error, plugins_touched, sources_of
from stepflow.errors import StepflowError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stepflow.client import HostRestart
    from stepflow.config import Config
    from stepflow.dev.mesh import DevMesh
    from stepflow.dev.service_process import Service
    from stepflow.mesh.v1 import host_pb2

NAMES_MAX = 3
"""Changed files that are named."""

PATIENCE_S = 10.0
"""How long a control plane that restarts is waited for."""

HOST_TIMEOUT_S = 150.0
"""For the changes of one host."""


class Reloader:
    """Reloads one mesh. `say` gets what was done, `warn` what was not."""

    def __init__(self, mesh: DevMesh, config: Config, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        assert config.source is not None
        self._mesh = mesh
        self._config = config
        self._path = config.source
        self._say = say
        self._warn = warn
        self._sources = sources_of(config, os.environ)
        self._watch = FileWatch(self._sources.values(), [self._path])

    def describe(self) -> list[str]:
        """Return lines that tell what is watched, and what is not."""
        watched = [name for name, sources in self._sources.items() if sources]
        blind = [name for name, sources in self._sources.items() if not sources]
        lines = [f"watching {', '.join([_shown(self._path), *(f'the files of {name}' for name in watched)])}"]
        if blind:
            lines.append(f"no local files: {', '.join(blind)} (stepflow components restart PLUGIN)")
        if not self._watch.complete:
            lines.append("there are too many source files near the scripts: those farthest away are not watched")
        return lines

    async def run(self) -> None:
        """React to changes, without end."""
        while True:
            await self._react(await self._watch.next_change())

    async def _react(self, changed: set[Path]) -> None:
        done: set[str] = set()
        if self._path in changed:
            done = await self._reload_config()

        touched = [name for name in plugins_touched(self._sources, changed) if name not in done]
        if touched:
            self._say(f"{_names(changed - {self._path})} changed: restarting {', '.join(touched)} …")
            await asyncio.gather(*(self._restart(name, changed) for name in touched))

    # --- component files ----------------------------------------------------------------------------------------------

    async def _restart(self, plugin: str, changed: set[Path]) -> None:
        from stepflow.client import Client

        # A server whose successor starts after its end must not end for a file that cannot be read.
        if not overlaps(self._config.plugins[plugin]):
            problem = await asyncio.to_thread(first_syntax_error, sorted(changed))
            if problem:
                self._warn(f"{plugin} was not restarted: {problem}")
                return

        try:
            async with Client(self._mesh.server, patience_s=PATIENCE_S) as client:
                hosts = await client.restart_plugin(plugin)
        except StepflowError as error:
            self._warn(f"{plugin} was not restarted: {error.message}")
            return
        self._tell(plugin, hosts)

    def _tell(self, plugin: str, hosts: Iterable[HostRestart]) -> None:
        """Print what happened to a plugin: one line if it is the same on all hosts."""
        texts: dict[str, list[HostRestart]] = {}
        for host in hosts:
            texts.setdefault(host.text, []).append(host)

        for text, alike in texts.items():
            on = f" ({', '.join(host.host_id for host in alike)})" if len(texts) > 1 else ""
            show = self._say if alike[0].outcome in ("restarted", "added", "removed") else self._warn
            show(f"{plugin}{on} {text}")

    # --- the configuration --------------------------------------------------------------------------------------------

    async def _reload_config(self) -> set[str]:
        """Apply the configuration file; return the plugins that were changed by it."""
        # 1. Read it here: a broken one goes no further.
        name = _shown(self._path)
        try:
            config = await asyncio.to_thread(reload_config, self._path)
        except StepflowError as error:
            self._warn(f"{name} cannot be used, and the former configuration stays in force: {error.message}")
            return set()
        for text in config.warnings:
            self._warn(text)

        # 2. Let the hosts apply it, one after another.
        hosts = [service for service in self._mesh.services if service.name.startswith("host-")]
        replies = [(host.name, reply) for host in hosts if (reply := await self._reload_host(host)) is not None]

        # 3. Tell, and watch what belongs to the plugins now.
        new_retry = config.retry != self._config.retry
        changed = self._tell_reload(name, replies, new_retry=new_retry)
        if new_retry:
            await self._mesh.restart("control_plane")
        self._config = config
        self._sources = await asyncio.to_thread(sources_of, config, os.environ)
        await asyncio.to_thread(self._watch.watch, list(self._sources.values()))
        return changed

    async def _reload_host(self, host: Service) -> host_pb2.ReloadHostResponse | None:
        """Let one host read the file; None after an error, which is told."""
        import grpc

        from stepflow.mesh.v1 import host_pb2, host_pb2_grpc
        from stepflow.rpc.channel import open_channel
        from stepflow.rpc.errors import error_of

        if not host.address:  # it starts at the moment, and reads the file then
            return None
        channel = open_channel(host.address)
        stub: Any = host_pb2_grpc.ComponentHostServiceStub(channel)
        try:
            reply: host_pb2.ReloadHostResponse = await stub.ReloadHost(
                host_pb2.ReloadHostRequest(), timeout=HOST_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as failed:
            error = error_of(failed)
            self._warn(f"{host.name} keeps the former configuration: {error.message}")
            return None
        finally:
            await channel.close()
        return reply

    def _tell_reload(
        self, name: str, replies: Sequence[tuple[str, host_pb2.ReloadHostResponse]], *, new_retry: bool
    ) -> set[str]:
        """Print what the hosts have changed; return the names of the plugins."""
        from stepflow.client import HostRestart

        changes: dict[str, list[HostRestart]] = {}
        for host, reply in replies:
            for change in reply.changes:
                changes.setdefault(change.plugin, []).append(HostRestart(host, change.outcome, change.detail))
        routes = {
            f"route {prefix} {what}": None
            for _, reply in replies
            for what, prefixes in (
                ("added", reply.routes_added),
                ("removed", reply.routes_removed),
                ("changed", reply.routes_changed),
            )
            for prefix in prefixes
        }

        applied = [*routes, *(f"plugin {plugin}" for plugin in changes), *(["retries"] if new_retry else [])]
        if replies:
            self._say(f"{name} changed: {', '.join(applied) or 'nothing to apply'}")
        for plugin, hosts in changes.items():
            self._tell(plugin, hosts)
        return set(changes)


def _names(paths: Iterable[Path]) -> str:
    """Return the names of files for a line: `a.py, b.py and 3 more`."""
    names = sorted(map(_shown, paths))
    more = f" and {len(names) - NAMES_MAX} more" if len(names) > NAMES_MAX else ""
    return ", ".join(names[:NAMES_MAX]) + more


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


__all__ = ["Reloader"]
