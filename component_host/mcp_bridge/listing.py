"""A server's tools, prompts and resources as components.

| offer | component | path |
|---|---|---|
| tool `add` | `add` | `/add` |
| prompt `greet` | `prompts/greet` | `/prompts/greet` |
| resources | `resources/read` | `/resources/read` |

- All pages are read, up to `PAGES_MAX`.
- A server without a list method offers none of that kind.
- A tool that differs from the specification is offered where a step can call it, else left out; one never costs the
  others. `OddOffers` warns of each once.
- Names with braces are left out: their paths would be patterns. Of a tool and a prompt with one id, the tool wins.

Imports the SDK: import it late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from mcp import MCPError
from mcp_types import METHOD_NOT_FOUND
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from component_host.backend import ComponentInfo
from component_host.mcp_bridge.link import CallTrace, call_trace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import mcp

    from component_host.mcp_bridge.link import OfferKind, ResultForm
    from component_host.mcp_bridge.odd_offers import OddOffers

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


class Offer(NamedTuple):
    """One component of a server."""

    kind: OfferKind
    info: ComponentInfo
    result_schema: Any = None
    """Of a tool's structured content; None: results are not checked."""


async def list_offers(client: mcp.Client, form: ResultForm, odd: OddOffers) -> dict[str, Offer]:
    """Return the server's offers by component id. Raises: MCPError; ValueError, the listing breaks the protocol."""
    capabilities = client.server_capabilities
    modern = client.protocol_version in MODERN_PROTOCOL_VERSIONS
    offers: dict[str, Offer] = {}
    seen_page, kept = None, frozenset[str]()
    async for tool, page in _items(client.list_tools, "tools", odd):
        if page is not seen_page:
            seen_page, kept = page, frozenset(listed.name for listed in page.tools)
        if (offer := _of_tool(tool, form, odd, modern=modern)) is None:
            continue
        if tool["name"] in kept:
            offers.setdefault(tool["name"], offer)
        else:
            odd.warn(tool["name"], "its arguments cannot be sent as its `x-mcp-header` says", offered=False)
    if capabilities.prompts is not None:
        async for prompt, _ in _items(client.list_prompts, "prompts", odd):
            offers.setdefault(PROMPTS + prompt["name"], Offer("prompt", _of_prompt(prompt)))
    if capabilities.resources is not None and await _has_resources(client, odd):
        offers.setdefault(READ_RESOURCE, Offer("resources", _RESOURCES))
    return {component: offer for component, offer in offers.items() if _is_name(component, odd)}


async def _has_resources(client: mcp.Client, odd: OddOffers) -> bool:
    """Return True if the server has a resource. (SDKs announce the capability for servers without any.)"""
    async for _ in _items(client.list_resources, "resources", odd):
        return True
    async for _ in _items(client.list_resource_templates, "resourceTemplates", odd):
        return True
    return False


def _of_tool(tool: dict[str, Any], form: ResultForm, odd: OddOffers, *, modern: bool) -> Offer | None:
    """Read a tool; None if no step can call it."""
    name = tool["name"]

    # 1. A call has an object of arguments. A schema that differs is kept if it may accept one.
    schema, problem = _input_schema(tool)
    if schema is None:
        odd.warn(name, problem, offered=False)
        return None
    if problem:
        odd.warn(name, problem, offered=True)

    # 2. Results are checked where the specification has such a schema.
    output_schema = result_schema = tool.get("outputSchema")
    if output_schema is not None and not isinstance(output_schema, dict):
        odd.warn(name, "its `outputSchema` is no object and is ignored", offered=True)
        output_schema = result_schema = None
    elif output_schema is not None and not modern and output_schema.get("type") != "object":
        odd.warn(name, "its `outputSchema` is not of type object; results are not checked", offered=True)
        result_schema = None

    # 3. Texts for people.
    texts = [tool.get("description"), tool.get("title")]
    if any(text is not None and not isinstance(text, str) for text in texts):
        odd.warn(name, "its description is no text and is ignored", offered=True)

    shown = CONTENT_SCHEMA if form == "content" else output_schema
    return Offer("tool", ComponentInfo(name, f"/{name}", _first_text(*texts), schema, shown), result_schema)


ANY_ARGUMENTS = {"type": "object"}


def _input_schema(tool: dict[str, Any]) -> tuple[Any, str]:
    """Return a tool's input schema and how it differs from the specification; None if it accepts no object."""
    schema = tool.get("inputSchema")
    if schema is None:
        return ANY_ARGUMENTS, "it has no `inputSchema`; any arguments are sent"
    if not isinstance(schema, dict | bool):
        return ANY_ARGUMENTS, "its `inputSchema` is no schema; any arguments are sent"
    if not _accepts_object(schema):
        return None, "its `inputSchema` accepts no object, and a call has an object of arguments"
    if isinstance(schema, bool):
        return ANY_ARGUMENTS, "its `inputSchema` is no object; any arguments are sent"
    return schema, "" if schema.get("type") == "object" else "its `inputSchema` is not of type object"


def _accepts_object(schema: Any, depth: int = 0) -> bool:
    """Return False for a schema that accepts no object by its types; True if in doubt."""
    if not isinstance(schema, dict):
        return schema is not False
    kind = schema.get("type")
    if isinstance(kind, str) and kind in _OTHER_TYPES:
        return False
    if isinstance(kind, list) and kind and all(each in _OTHER_TYPES for each in kind if isinstance(each, str)):
        return False
    for keyword in ("anyOf", "oneOf"):
        branches = schema.get(keyword)
        if isinstance(branches, list) and branches and depth < BRANCH_DEPTH_MAX:
            return any(_accepts_object(branch, depth + 1) for branch in branches)
    return True


_OTHER_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "null"})

BRANCH_DEPTH_MAX = 3
"""Nested `anyOf` and `oneOf` that are searched; deeper ones count as accepting an object."""


def _of_prompt(prompt: dict[str, Any]) -> ComponentInfo:
    arguments = prompt.get("arguments")
    listed = [each for each in arguments if isinstance(each, dict)] if isinstance(arguments, list) else []

    properties: dict[str, Any] = {}
    required: list[str] = []
    for argument in listed:
        if not isinstance(name := argument.get("name"), str):
            continue
        properties[name] = {"type": "string"}
        if isinstance(text := argument.get("description"), str) and text:
            properties[name]["description"] = text
        if argument.get("required") is True:
            required.append(name)

    schema = {"type": "object", "properties": properties}
    return ComponentInfo(
        component=PROMPTS + prompt["name"],
        path=f"/{PROMPTS}{prompt['name']}",
        description=_first_text(prompt.get("description"), prompt.get("title")),
        input_schema={**schema, "required": required} if required else schema,
        output_schema=MESSAGES_SCHEMA,
    )


def _first_text(*values: Any) -> str | None:
    """Return the first value that is a text and not empty."""
    return next((value for value in values if isinstance(value, str) and value), None)


_RESOURCES = ComponentInfo(
    component=READ_RESOURCE,
    path=f"/{READ_RESOURCE}",
    description="Read a resource of the server by its URI.",
    input_schema=URI_SCHEMA,
    output_schema=CONTENTS_SCHEMA,
)

P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)


class _ListPage(Protocol[P_co]):
    async def __call__(self, *, cursor: str | None) -> P_co: ...


async def _items(list_page: _ListPage[P], member: str, odd: OddOffers) -> AsyncIterator[tuple[dict[str, Any], P]]:
    """Yield the items of all pages, as the server sent them, with the SDK's page; none if the server lacks the method.

    Tools and prompts without a name are left out.
    """
    cursor: str | None = None
    count = 0
    for _ in range(PAGES_MAX):
        trace = CallTrace()
        before = call_trace.set(trace)
        try:
            page = await list_page(cursor=cursor)
        except MCPError as error:
            if error.code == METHOD_NOT_FOUND:
                return
            raise
        finally:
            call_trace.reset(before)

        answer = trace.answer or {}
        items = answer.get(member)
        if not isinstance(items, list | None):
            raise ValueError(f"the server's listing breaks the protocol (`{member}` is no list)")
        for item in items or ():
            count += 1
            if not isinstance(item, dict):
                odd.warn(f"{member} {count}", "it is no object", offered=False)
            elif member in _NAMED and not (isinstance(item.get("name"), str) and item["name"]):
                odd.warn(f"{member} {count}", "it has no name", offered=False)
            else:
                yield item, page

        cursor = answer.get("nextCursor")
        if not isinstance(cursor, str) or not cursor or count >= OFFERS_MAX:
            return


_NAMED = ("tools", "prompts")


def _is_name(component: str, odd: OddOffers) -> bool:
    if "{" in component or "}" in component:
        odd.warn(component, "braces in its name would make its path a pattern", offered=False)
        return False
    return True


__all__ = ["Offer", "list_offers"]
