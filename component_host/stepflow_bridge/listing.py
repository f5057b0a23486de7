"""The components in a server's list. One that differs from the protocol costs the server nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from component_host.backend import ComponentInfo
from component_host.stepflow_bridge.loose_lines import plain
from component_host.stepflow_bridge.protocol import DECODE_ERRORS, Line, ServerRefusedError, member_of
from stepflow.telemetry import get_logger

log = get_logger("component_host.stepflow")


class _ListedComponent(Struct):
    component: str
    path: str | None = None
    description: str | None = None
    input_schema: Any = None
    output_schema: Any = None


_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_listed = msgspec.json.Decoder(_ListedComponent).decode


def components_of(reply: Line, plugin: str) -> list[ComponentInfo]:
    """Decode the reply to `components/list`. Raises: ServerRefusedError."""
    try:
        return decode_listing(member_of(reply, "components"), plugin)
    except DECODE_ERRORS as error:
        raise ServerRefusedError(f"sent an invalid list of components: {error}") from None


def decode_listing(components: Raw, plugin: str) -> list[ComponentInfo]:
    """Decode the members of a `components/list` result. Raises any of `DECODE_ERRORS`.

    A component that differs from the protocol is listed as far as it can be called, else left out, with a warning.
    """
    infos = []
    for number, text in enumerate(_decode_list(components), 1):
        listed = _listed(text, number, plugin)
        if listed is not None:
            path = listed.path or listed.component
            path = path if path.startswith("/") else "/" + path
            infos.append(
                ComponentInfo(listed.component, path, listed.description, listed.input_schema, listed.output_schema)
            )
    return infos


def _listed(text: Raw, number: int, plugin: str) -> _ListedComponent | None:
    try:
        return _decode_listed(text)
    except DECODE_ERRORS as error:
        problem = str(error)

    members = plain(text)
    name = members.get("component") if isinstance(members, dict) else None
    if not isinstance(name, str):
        log.warning("component of the server left out", plugin=plugin, component=f"number {number}", problem=problem)
        return None
    log.warning("the server lists an odd component", plugin=plugin, component=name, problem=problem)
    path, description = (
        text if isinstance(text := members.get(member), str) else None for member in ("path", "description")
    )
    return _ListedComponent(name, path, description, members.get("input_schema"), members.get("output_schema"))


__all__ = ["components_of", "decode_listing"]
