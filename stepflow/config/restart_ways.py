"""Which plugins have servers to restart, and whether a second server can run during the life of the first. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.config.model import BuiltinPlugin, GrpcPlugin, McpPlugin, MockPlugin
from stepflow.redaction import url_without_credentials

if TYPE_CHECKING:
    from stepflow.config.model import PluginConfig

PORT = "{port}"


def why_no_server(plugin: PluginConfig) -> str:
    """Return why the host has no server of a plugin to restart; empty if it starts one."""
    if isinstance(plugin, (BuiltinPlugin, MockPlugin)):
        return f"{plugin.type} components are part of the host"
    if plugin.command:
        return ""
    if isinstance(plugin, GrpcPlugin):
        return "its workers are started elsewhere; restart them there"
    return f"its server runs at {url_without_credentials(plugin.url)}; restart it there"


def overlaps(plugin: PluginConfig) -> bool:
    """Return False if two backends of a plugin cannot be open at a time: they use one port, or one queue."""
    if isinstance(plugin, GrpcPlugin):
        return bool(plugin.command and not plugin.listen)
    return not (
        isinstance(plugin, McpPlugin)
        and plugin.transport == "streamable-http"
        and plugin.command
        and PORT not in plugin.url
    )


__all__ = ["overlaps", "why_no_server"]
