"""From configured plugins to backends: the only module with the mapping from plugin types to backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from component_host.backend import BackendContext, ShownConfig
from component_host.logs import HostLogs
from component_host.secret_values import secret_values
from stepflow.config import (
    NO_LIMITS,
    BuiltinPlugin,
    GrpcPlugin,
    McpPlugin,
    MockPlugin,
    StepflowPlugin,
    resolve_plugin,
)
from stepflow.telemetry import hide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from component_host.backend import Backend
    from component_host.stepflow_bridge.pull.endpoint import PullEndpoint
    from stepflow.config import Config

PullEndpoints: TypeAlias = "dict[tuple[str, str, bool], PullEndpoint]"
"""Endpoints of pull plugins, by listen address, advertised address, and `insecure`."""


def make_backends(
    config: Config,
    environ: Mapping[str, str],
    listing_changed: Callable[[], None] = lambda: None,
    names: Iterable[str] | None = None,
    endpoints: PullEndpoints | None = None,
    logs: HostLogs | None = None,
) -> dict[str, Backend]:
    """Build the backends of all plugins with a route, or of the plugins in `names` with a route. Starts nothing.

    `endpoints`, `logs`: see `make_backend`.

    Raises:
        ConfigInvalid: a variable in a plugin's texts is not set.
    """
    wanted = {rule.plugin for rules in config.routes.values() for rule in rules}
    if names is not None:
        wanted &= set(names)

    shared = {} if endpoints is None else endpoints
    return {
        name: make_backend(name, config, environ, listing_changed, shared, logs)
        for name in config.plugins
        if name in wanted
    }


def make_backend(
    name: str,
    config: Config,
    environ: Mapping[str, str],
    listing_changed: Callable[[], None] = lambda: None,
    endpoints: PullEndpoints | None = None,
    logs: HostLogs | None = None,
) -> Backend:
    """Build one backend. `endpoints` are shared with the other backends: plugins with the same `listen` share one.

    `logs`: those of the host; without them, stderr is kept for errors only.

    Raises as `make_backends` does.
    """
    plugin = resolve_plugin(config, name, environ)
    hide(secret_values(config, name, environ))
    limits = getattr(plugin, "limits", NO_LIMITS)  # plugins without a server have none
    context = BackendContext(
        name,
        str(config.working_directory),
        environ,
        listing_changed,
        limits,
        ShownConfig.of(config.plugins[name]),
        (logs or HostLogs()).of(name),
    )

    if isinstance(plugin, BuiltinPlugin):
        from component_host.builtin.backend import BuiltinBackend

        return BuiltinBackend(context, plugin, allowed_paths=config.allowed_paths)

    if isinstance(plugin, MockPlugin):
        from component_host.mock import MockBackend

        return MockBackend(context, plugin)

    if isinstance(plugin, McpPlugin):
        return _mcp_backend(context, plugin)

    if isinstance(plugin, GrpcPlugin):
        return _pull_backend(context, plugin, {} if endpoints is None else endpoints)

    assert isinstance(plugin, StepflowPlugin)
    return _stepflow_backend(context, plugin)


def _mcp_backend(context: BackendContext, plugin: McpPlugin) -> Backend:
    from component_host.mcp_bridge.backend import McpBackend
    from component_host.mcp_bridge.link import McpServerConfig

    config = McpServerConfig(
        command=plugin.command,
        args=plugin.args,
        env=plugin.env,
        inherit_env=plugin.inherit_env,
        url=plugin.url if plugin.transport == "streamable-http" else "",
        headers=plugin.headers,
        result=plugin.result,
        start_timeout_s=plugin.start_timeout_ms / 1000,
        mode=plugin.mode,
    )
    return McpBackend(context, config)


def _stepflow_backend(context: BackendContext, plugin: StepflowPlugin) -> Backend:
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
        from component_host.stepflow_bridge.http.backend import HttpServerConfig, StepflowHttpBackend

        http = HttpServerConfig(
            url=plugin.url,
            headers=plugin.headers,
            blob_threshold=plugin.blob_threshold,
            blob_host=plugin.blob_host,
            **common,
        )
        return StepflowHttpBackend(context, http)

    from component_host.stepflow_bridge.stdio.backend import StdioServerConfig, StepflowStdioBackend

    return StepflowStdioBackend(context, StdioServerConfig(line_bytes_max=plugin.line_bytes_max, **common))


PULL_LISTEN = "127.0.0.1:7837"
"""Default address of stepflow-py's workers."""


def _pull_backend(context: BackendContext, plugin: GrpcPlugin, endpoints: PullEndpoints) -> Backend:
    from component_host.stepflow_bridge.pull.backend import PullConfig, StepflowPullBackend
    from component_host.stepflow_bridge.pull.endpoint import PullEndpoint

    listen = plugin.listen or ("" if plugin.command else PULL_LISTEN)
    endpoint: PullEndpoint | None = None

    if listen:
        key = (listen, plugin.advertise, plugin.insecure)
        endpoint = endpoints.get(key)
        if endpoint is None:
            endpoint = endpoints[key] = PullEndpoint(listen, advertise=plugin.advertise, insecure=plugin.insecure)

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
    return StepflowPullBackend(context, pull, endpoint)
