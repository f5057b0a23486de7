"""From configured plugins to backends: the one place that knows which backend drives which kind of server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from component_host.backend import BackendContext
from stepflow.config import NO_LIMITS, BuiltinPlugin, GrpcPlugin, McpPlugin, MockPlugin, StepflowPlugin, resolve_plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from component_host.backend import Backend
    from component_host.stepflow_bridge.pull.endpoint import PullDoor
    from stepflow.config import Config

Doors: TypeAlias = "dict[tuple[str, str, bool], PullDoor]"
"""Where workers of pull plugins connect: by address, advertised address, and whether it may be insecure."""


def make_backends(
    config: Config,
    environ: Mapping[str, str],
    listing_changed: Callable[[], None] = lambda: None,
    names: Iterable[str] | None = None,
    doors: Doors | None = None,
) -> dict[str, Backend]:
    """Build the backend of every plugin that a route names, or of those among them in `names`; nothing is started.

    `doors`: see `make_backend`.

    Raises:
        ConfigInvalid: a variable in a plugin's texts is not set.
    """
    wanted = {rule.plugin for rules in config.routes.values() for rule in rules}
    if names is not None:
        wanted &= set(names)
    shared = {} if doors is None else doors
    return {
        name: make_backend(name, config, environ, listing_changed, shared) for name in config.plugins if name in wanted
    }


def make_backend(
    name: str,
    config: Config,
    environ: Mapping[str, str],
    listing_changed: Callable[[], None] = lambda: None,
    doors: Doors | None = None,
) -> Backend:
    """Build one backend. `doors` are those of the other backends: plugins with the same `listen` share one.

    Raises as `make_backends` does.
    """
    plugin = resolve_plugin(config, name, environ)
    limits = getattr(plugin, "limits", NO_LIMITS)  # plugins without a server of their own have none
    context = BackendContext(name, str(config.working_directory), environ, listing_changed, limits)
    if isinstance(plugin, BuiltinPlugin):
        from component_host.builtin.backend import BuiltinBackend

        return BuiltinBackend(context, plugin, allowed_paths=config.allowed_paths)
    if isinstance(plugin, MockPlugin):
        from component_host.mock import MockBackend

        return MockBackend(context, plugin)
    if isinstance(plugin, McpPlugin):
        from component_host.mcp_bridge.backend import McpBackend, McpServerConfig

        return McpBackend(
            context,
            McpServerConfig(
                command=plugin.command,
                args=plugin.args,
                env=plugin.env,
                inherit_env=plugin.inherit_env,
                url=plugin.url if plugin.transport == "streamable-http" else "",
                headers=plugin.headers,
                result=plugin.result,
                start_timeout_s=plugin.start_timeout_ms / 1000,
                mode=plugin.mode,
            ),
        )
    if isinstance(plugin, GrpcPlugin):
        return _pull_backend(context, plugin, {} if doors is None else doors)
    assert isinstance(plugin, StepflowPlugin)
    common: dict[str, Any] = {
        "command": plugin.command,
        "args": plugin.args,
        "env": plugin.env,
        "inherit_env": plugin.inherit_env,
        "processes": plugin.processes,
        "concurrency": plugin.concurrency,
        "start_timeout_s": plugin.start_timeout_ms / 1000,
        "request_timeout_s": plugin.request_timeout_ms / 1000,
    }
    if plugin.transport == "http":
        from component_host.stepflow_bridge.http import HttpServerConfig, StepflowHttpBackend

        return StepflowHttpBackend(
            context,
            HttpServerConfig(
                url=plugin.url,
                headers=plugin.headers,
                blob_threshold=plugin.blob_threshold,
                blob_host=plugin.blob_host,
                **common,
            ),
        )
    from component_host.stepflow_bridge.stdio_backend import StdioServerConfig, StepflowStdioBackend

    return StepflowStdioBackend(context, StdioServerConfig(line_bytes_max=plugin.line_bytes_max, **common))


PULL_LISTEN = "127.0.0.1:7837"
"""Where stepflow-py's workers look for tasks by default."""


def _pull_backend(context: BackendContext, plugin: GrpcPlugin, doors: Doors) -> Backend:
    from component_host.stepflow_bridge.pull.backend import PullConfig, StepflowPullBackend
    from component_host.stepflow_bridge.pull.endpoint import PullDoor

    listen = plugin.listen or ("" if plugin.command else PULL_LISTEN)
    door: PullDoor | None = None
    if listen:
        where = (listen, plugin.advertise, plugin.insecure)
        door = doors.get(where)
        if door is None:
            door = doors[where] = PullDoor(listen, advertise=plugin.advertise, insecure=plugin.insecure)
    limit_ms = plugin.execution_timeout_ms
    pull = PullConfig(
        queue_name=plugin.queue_name,
        command=plugin.command,
        args=plugin.args,
        env=plugin.env,
        inherit_env=plugin.inherit_env,
        processes=plugin.processes,
        concurrency=plugin.concurrency,
        queue_timeout_s=plugin.queue_timeout_ms / 1000,
        execution_timeout_s=None if limit_ms is None else limit_ms / 1000,
        start_timeout_s=plugin.start_timeout_ms / 1000,
    )
    return StepflowPullBackend(context, pull, door)
