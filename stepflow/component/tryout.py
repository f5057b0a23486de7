"""Looking at a component server without a host: `--list`, `--call NAME`, and the hint at a terminal.

`--call` runs the real server and answers its requests itself: blobs live in memory for the one call; what needs an
engine (running flows) is refused with a word on how to do it.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from stepflow.component.registry import Registry
    from stepflow.component.server import Server

_CALL_ID = "call"


def list_components(registry: Registry) -> int:
    """Print the components with their schemas as JSON; return the exit code."""
    listed = [component.describe() for component in registry.components()]
    return _print(msgspec.json.format(msgspec.json.encode(listed), indent=2).decode())


def _print(text: str) -> int:
    """Write to stdout; return the exit code: 1 when whoever reads it has gone (`--list | head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is left in the buffer must not be written again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def call_component(registry: Registry, arguments: Sequence[str]) -> int:
    """Run one component on JSON from stdin and print its output as JSON; return 0, 1 (it failed) or 2 (usage)."""
    from stepflow import codec
    from stepflow.component.server import did_you_mean
    from stepflow.errors import Invalid

    if len(arguments) != 1:
        return _usage("--call takes one component name, and the input as JSON on stdin")
    path = "/" + arguments[0].strip("/")
    if registry.find(path) is None:
        return _usage(f"there is no component {path}{did_you_mean(path, [c.path for c in registry.components()])}")
    if sys.stdin.isatty():
        print(f"input of {path} as JSON, then Ctrl-D:", file=sys.stderr)
    try:
        text = codec.compact(sys.stdin.buffer.read() or b"null", what="the input on stdin")
    except Invalid as problem:
        return _usage(str(problem))
    return _call(registry, path, text)


def hint(registry: Registry) -> str:
    """Return what to tell someone who starts a server by hand."""
    program = sys.argv[0] or "server.py"
    names = ", ".join(component.path for component in registry.components())
    return (
        f"This is a StepFlow component server with {names}.\n"
        "It is usually started by a host, which speaks to it in JSON lines on stdin. In a stepflow-config.yml:\n\n"
        "  plugins:\n"
        f"    mine: {{type: stepflow, transport: stdio, command: python, args: [{program}]}}\n"
        "  routes:\n"
        '    "/mine": [{plugin: mine}]\n\n'
        f"By hand: `python {program} --list` shows the components, `python {program} --call NAME` runs one.\n"
        "Waiting for JSON lines; Ctrl-D ends it."
    )


def _usage(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 2


def _call(registry: Registry, path: str, text: bytes) -> int:
    import os

    from stepflow.component.stdio import configure_log, new_loop

    configure_log()
    fd_out = os.dup(1)
    os.dup2(2, 1)  # what the component prints is not its output
    loop = new_loop()
    try:
        reply = loop.run_until_complete(_reply_to(registry, path, text))
    except KeyboardInterrupt:
        return 130
    finally:
        sys.stdout.flush()
        loop.close()
    error = reply.get("error")
    if error is None:
        with os.fdopen(fd_out, "wb") as stdout:
            stdout.write(msgspec.json.format(msgspec.json.encode(reply["result"]["output"]), indent=2) + b"\n")
        return 0
    print(f"{error['data'].get('error_code', 'ERROR')}: {error['message']}", file=sys.stderr)
    for detail in ("details", "traceback"):
        if detail in error["data"]:
            print(error["data"][detail], file=sys.stderr)
    return 1


async def _reply_to(registry: Registry, path: str, text: bytes) -> dict[str, Any]:
    import asyncio
    import logging

    from stepflow.component.server import Server
    from stepflow.component.stdio import log_level

    host = _LocalHost(asyncio.get_running_loop())
    host.server = Server(registry, host.receive, show_tracebacks=log_level() <= logging.DEBUG)
    params = {"component": path, "input": msgspec.Raw(text), "run_id": "00000000-0000-0000-0000-000000000000"}
    host.say({"id": "initialize", "method": "initialize", "params": {"capabilities": {"progress": True}}})
    host.say({"id": _CALL_ID, "method": "components/execute", "params": {**params, "step_id": "call"}})
    return await host.reply


class _LocalHost:
    """The other end of the protocol, for one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.server: Server
        self.reply: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._loop = loop
        self._blobs: dict[str, tuple[bytes, str]] = {}

    def say(self, message: dict[str, Any]) -> None:
        self.server.receive(msgspec.json.encode({"jsonrpc": "2.0", **message}))

    def receive(self, line: bytes) -> None:
        message = msgspec.json.decode(line)
        method = message.get("method")
        if method == "components/progress":
            progress = message["params"]
            share = f"{progress['done']:g}/{progress['total']:g}"
            print(f"progress {share} {progress['message']}".rstrip(), file=sys.stderr)
        elif method is not None:
            self._loop.call_soon(self.say, {"id": message["id"], **self._answer(method, message["params"])})
        elif message["id"] == _CALL_ID and not self.reply.done():
            self.reply.set_result(message)

    def _answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        from stepflow import codec

        match method:
            case "blobs/put":
                content = codec.encode(params["data"])
                blob_id = codec.blob_id(content)
                self._blobs[blob_id] = (content, params["blob_type"])
                return {"result": {"blob_id": blob_id}}
            case "blobs/get" if params["blob_id"] in self._blobs:
                content, blob_type = self._blobs[params["blob_id"]]
                return {"result": {"data": msgspec.Raw(content), "blob_type": blob_type}}
            case "blobs/get":
                return {"error": {"code": -32011, "message": "no such blob; --call knows only those of its own call"}}
        alone = "--call runs one component alone: to give it flows to run, use it in a flow with `stepflow run`"
        return {"error": {"code": -32601, "message": f"{method} is not possible here: {alone}"}}
