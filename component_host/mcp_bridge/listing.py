"""A server's tools, prompts and resources as components.

| offer | component | path |
|---|---|---|
| tool `add` | `add` | `/add` |
| prompt `greet` | `prompts/greet` | `/prompts/greet` |
| resources | `resources/read` | `/resources/read` |

- All pages are read, up to `PAGES_MAX`.
- A server without a list method offers none of that kind.
- Names with braces are left out: their paths would be patterns. Of a tool and a prompt with one id, the tool wins.

Imports the SDK: import it late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from mcp import MCPError
from mcp_types import METHOD_NOT_FOUND

from component_host.backend import ComponentInfo
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import mcp
    import mcp_types

    from component_host.mcp_bridge.link import OfferKind, ResultForm

OFFERS_MAX = 10_000
PAGES_MAX = 1_000
"""An endless listing is cut off here."""

PROMPTS = "prompts/"
READ_RESOURCE = "resources/read"

CONTENT_SCHEMA = {"type": "array", "items": {"type": "object"}}
MESSAGES_SCHEMA = {
    "type": "object",
    "properties": {
        "description": {"type": "string"},
        "messages": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"role": {"enum": ["user", "assistant"]}, "content": {"type": "object"}},
                "required": ["role", "content"],
            },
        },
    },
    "required": ["messages"],
}
URI_SCHEMA = {"type": "object", "properties": {"uri": {"type": "string"}}, "required": ["uri"]}
CONTENTS_SCHEMA = {
    "type": "object",
    "properties": {
        "contents": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "uri": {"type": "string"},
                    "mimeType": {"type": "string"},
                    "text": {"type": "string"},
                    "blob": {"type": "string", "contentEncoding": "base64"},
                },
                "required": ["uri"],
            },
        }
    },
    "required": ["contents"],
}

log = get_logger("component_host.mcp")


class Offer(NamedTuple):
    """One component of a server."""

    kind: OfferKind
    info: ComponentInfo


async def list_offers(client: mcp.Client, form: ResultForm) -> dict[str, Offer]:
    """Return the server's offers by component id. Raises: MCPError; ValueError, the listing breaks the protocol."""
    capabilities = client.server_capabilities
    offers: dict[str, Offer] = {}
    async for tool in _pages(client.list_tools, lambda page: page.tools):
        offers.setdefault(tool.name, Offer("tool", _of_tool(tool, form)))
    if capabilities.prompts is not None:
        async for prompt in _pages(client.list_prompts, lambda page: page.prompts):
            offers.setdefault(PROMPTS + prompt.name, Offer("prompt", _of_prompt(prompt)))
    if capabilities.resources is not None and await _has_resources(client):
        offers.setdefault(READ_RESOURCE, Offer("resources", _RESOURCES))
    return {component: offer for component, offer in offers.items() if _is_name(component)}


async def _has_resources(client: mcp.Client) -> bool:
    """Return True if the server has a resource. (SDKs announce the capability for servers without any.)"""
    async for _ in _pages(client.list_resources, lambda page: page.resources):
        return True
    async for _ in _pages(client.list_resource_templates, lambda page: page.resource_templates):
        return True
    return False


def _of_tool(tool: mcp_types.Tool, form: ResultForm) -> ComponentInfo:
    return ComponentInfo(
        component=tool.name,
        path=f"/{tool.name}",
        description=tool.description or tool.title,
        input_schema=tool.input_schema,
        output_schema=CONTENT_SCHEMA if form == "content" else tool.output_schema,
    )


def _of_prompt(prompt: mcp_types.Prompt) -> ComponentInfo:
    arguments = prompt.arguments or []
    properties: dict[str, Any] = {}
    for argument in arguments:
        properties[argument.name] = {"type": "string"}
        if argument.description:
            properties[argument.name]["description"] = argument.description
    schema = {"type": "object", "properties": properties}
    required = [argument.name for argument in arguments if argument.required]
    return ComponentInfo(
        component=PROMPTS + prompt.name,
        path=f"/{PROMPTS}{prompt.name}",
        description=prompt.description or prompt.title,
        input_schema={**schema, "required": required} if required else schema,
        output_schema=MESSAGES_SCHEMA,
    )


_RESOURCES = ComponentInfo(
    component=READ_RESOURCE,
    path=f"/{READ_RESOURCE}",
    description="Read a resource of the server by its URI.",
    input_schema=URI_SCHEMA,
    output_schema=CONTENTS_SCHEMA,
)

P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)
T = TypeVar("T")


class _ListPage(Protocol[P_co]):
    async def __call__(self, *, cursor: str | None) -> P_co: ...


async def _pages(list_page: _ListPage[P], items: Callable[[P], Sequence[T]]) -> AsyncIterator[T]:
    """Yield the items of all pages; none if the server lacks the method."""
    cursor: str | None = None
    count = 0
    for _ in range(PAGES_MAX):
        try:
            page = await list_page(cursor=cursor)
        except MCPError as error:
            if error.code == METHOD_NOT_FOUND:
                return
            raise
        for item in items(page):
            yield item
        count += len(items(page))
        cursor = page.next_cursor  # type: ignore[attr-defined]  # all of the SDK's pages have it
        if cursor is None or count >= OFFERS_MAX:
            return


def _is_name(component: str) -> bool:
    if "{" in component or "}" in component:
        log.warning("component left out: braces in its name would make its path a pattern", component=component)
        return False
    return True


__all__ = ["Offer", "list_offers"]
