"""Warnings about offers of a server that differ from the specification."""

from __future__ import annotations

from stepflow.telemetry import get_logger

ODD_MAX = 1_000
"""Warnings of one plugin; further ones are not logged."""

log = get_logger("component_host.mcp")


class OddOffers:
    """Warns of each odd offer once, over all listings and connections of a plugin."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._warned: set[tuple[str, str]] = set()

    def warn(self, name: str, problem: str, *, offered: bool) -> None:
        """Warn of the tool or prompt `name`; `offered`: steps can call it all the same."""
        if (name, problem) in self._warned or len(self._warned) >= ODD_MAX:
            return
        self._warned.add((name, problem))
        what = "the MCP server lists an odd component" if offered else "component of the MCP server left out"
        log.warning(what, plugin=self._plugin, component=name, problem=problem)


__all__ = ["OddOffers"]
