"""An MCP server with a tool for each behaviour that the bridge must handle; runs on versions 1 and 2 of the SDK.

Without arguments it speaks stdio; with a port, streamable HTTP; with `json` after the port, it sends JSON responses
instead of event streams.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

try:  # version 2
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
except ImportError:  # version 1
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as MCPServer
    from mcp.server.fastmcp.exceptions import ToolError

server = MCPServer("tools")


def touch(path: str) -> None:
    Path(path).touch()


def exists(path: str) -> bool:
    return Path(path).exists()


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool(structured_output=False)
def say(text: str) -> str:
    """Give a text back, without structure."""
    return text


@server.tool(structured_output=False)
def say_twice(text: str) -> list[str]:
    """Give two blocks of text."""
    return [text, text]


@server.tool()
def describe(depth: int) -> dict[str, Any]:
    """Give a structure with numbers that are easily damaged."""
    return {"big": 2**60 + 1, "float": 1.0, "text": "ä\n\u2028", "none": None, "depth": depth}


@server.tool()
def broken(reason: str) -> str:
    """Fail."""
    raise ToolError(reason)


@server.tool()
async def count(to: int, ctx: Context) -> int:
    """Count, with a progress report for each number."""
    for number in range(1, to + 1):
        await ctx.report_progress(number, to, f"at {number}")
    return to


@server.tool()
async def walk(steps: int, pause_s: float, loudly: bool, ctx: Context) -> int:
    """Take steps, with a progress report after each if it is to be done loudly."""
    for number in range(1, steps + 1):
        await asyncio.sleep(pause_s)
        if loudly:
            await ctx.report_progress(number, steps)
    return steps


@server.tool()
async def meet(folder: str, name: str, others: list[str]) -> str:
    """Announce oneself in the folder and wait for the others: ends only if all the calls run at once."""
    touch(f"{folder}/{name}")
    while not all(exists(f"{folder}/{other}") for other in others):  # noqa: ASYNC110  # files are the only sign
        await asyncio.sleep(0.005)
    return name


@server.tool()
async def hang(started: str, cancelled: str) -> str:
    """Block until cancelled; create a file at the start and another one at the cancel."""
    touch(started)
    try:
        await asyncio.Event().wait()
    finally:
        touch(cancelled)
    return ""


@server.tool()
def crash(last_words: str, once: str | None = None) -> str:
    """End the process at once; with `once`, a file, only if the file does not exist yet."""
    if once is not None:
        if exists(once):
            return "survived"
        touch(once)
    print(last_words, file=sys.stderr, flush=True)
    os._exit(7)


@server.tool()
def spawn_sleeper() -> int:
    """Start a process that outlives a careless end of this one; give its id."""
    sleeper = subprocess.Popen(["/bin/sleep", "600"])
    return sleeper.pid


@server.tool()
def process_id() -> int:
    """Give the server's process id."""
    return os.getpid()


@server.tool()
def environment() -> dict[str, str]:
    """Give all environment variables."""
    return dict(os.environ)


@server.tool(structured_output=False)
def meta_of_call(ctx: Context) -> dict[str, Any]:
    """Give the call's `_meta`."""
    meta = ctx.request_context.meta
    return meta.model_dump() if hasattr(meta, "model_dump") else dict(meta or {})


@server.tool()
async def learn(name: str, ctx: Context) -> str:
    """Offer one more tool, and tell the client so."""
    server.add_tool(lambda: name, name=name, description="learned", structured_output=False)
    if hasattr(ctx, "notify_tools_changed"):
        await ctx.notify_tools_changed()
        if ctx.protocol_version and ctx.protocol_version < "2026":
            await ctx.session.send_tool_list_changed()
    else:
        await ctx.session.send_tool_list_changed()
    return name


@server.tool(structured_output=False)
def era(ctx: Context) -> str:
    """Give the protocol's version that was agreed on."""
    try:
        return ctx.protocol_version or "none"
    except AttributeError:
        return str(ctx.session.client_params.protocolVersion)


@server.tool(structured_output=False)
def big(size: int) -> str:
    """Give a text of that many characters."""
    return "x" * size


@server.prompt()
def greet(name: str) -> str:
    """Ask for a greeting."""
    return f"Greet {name}."


@server.resource("note://{name}")
def note(name: str) -> str:
    """Give a note."""
    return f"This is {name}."


def main() -> None:
    if len(sys.argv) == 1:
        server.run()
        return
    options = {"host": "127.0.0.1", "port": int(sys.argv[1]), "json_response": "json" in sys.argv}
    if hasattr(server.settings, "port"):  # version 1
        for name, value in options.items():
            setattr(server.settings, name, value)
        server.run("streamable-http")
    else:
        server.run("streamable-http", **options)


if __name__ == "__main__":
    main()
