"""A component server without a host: `--help`, `--list`, `--call NAME`, and the hint at a terminal.

`--call` runs the real server and answers its requests: blobs live in memory for the one call; flows need an engine and
are refused with a pointer to `stepflow run`.
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
    from stepflow.component.server import ComponentServer

_CALL_ID = "call"


def list_components(registry: Registry) -> int:
    """Print the components with their schemas as JSON; return the exit code."""
    listed = [component.describe() for component in registry.components()]
    return _print(msgspec.json.format(msgspec.json.encode(listed), indent=2).decode())


def _print(text: str) -> int:
    """Write to stdout; return the exit code: 1 if that failed."""
    try:
        print(text, flush=True)
    except OSError as error:
        # The rest of the buffer must not be written again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _unwritable(error)
    return 0


def _unwritable(error: OSError) -> int:
    """Report a failed write to stdout; return the exit code."""
    if not isinstance(error, BrokenPipeError):  # the reader has what it wanted (`--list | head`)
        print(f"error: cannot write to stdout: {error.strerror}", file=sys.stderr)
    return 1


def call_component(registry: Registry, arguments: Sequence[str]) -> int:
    """Run one component on JSON from stdin and print the output as JSON; return 0, 1 (failed) or 2 (usage)."""
    from stepflow import codec
    from stepflow.errors import Invalid

    if len(arguments) != 1:
        return _usage("--call takes one component name, and the input as JSON on stdin")
    path = "/" + arguments[0].strip("/")
    if registry.find(path) is None:
        return _usage(f"there is no component {path}{registry.suggestion_for(path)}")

    if sys.stdin.isatty():
        print(f"input of {path} as JSON, then Ctrl-D:", file=sys.stderr)
    try:
        text = codec.compact(sys.stdin.buffer.read() or b"null", what="the input on stdin")
    except Invalid as problem:
        return _usage(str(problem))

    return _call(registry, path, text)


def print_help(registry: Registry) -> int:
    """Print what the program is and does; return the exit code."""
    return _print(
        f"usage: {_program()} [--list | --call NAME | --help]\n\n"
        f"{_introduction(registry)}\n"
        "Options:\n"
        "  --list       Print the components with their schemas as JSON.\n"
        "  --call NAME  Run one component on JSON from stdin, and print its output as JSON.\n"
        "  -h, --help   Show this message.\n\n"
        "Without an option it serves its host."
    )


def hint(registry: Registry) -> str:
    """Return the greeting of a server started by hand at a terminal."""
    program = _program()
    return (
        f"{_introduction(registry)}\n"
        f"By hand: `python {program} --list` shows the components, `python {program} --call NAME` runs one.\n"
        "Waiting for JSON lines; Ctrl-D ends it."
    )


def _program() -> str:
    return sys.argv[0] or "server.py"


def _introduction(registry: Registry) -> str:
    names = ", ".join(component.path for component in registry.components())
    return (
        f"This is a StepFlow component server with {names}.\n"
        "It is usually started by a host, which speaks to it in JSON lines on stdin. In a stepflow-config.yml:\n\n"
        "  plugins:\n"
        f"    mine: {{type: stepflow, transport: stdio, command: python, args: [{_program()}]}}\n"
        "  routes:\n"
        '    "/mine": [{plugin: mine}]\n'
    )


def _usage(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 2


def _call(registry: Registry, path: str, text: bytes) -> int:
    from stepflow.component.process import configure_log, new_loop

    configure_log()
    fd_out = os.dup(1)
    os.dup2(2, 1)  # text printed by the component is not its output

    loop = new_loop()
    try:
        reply = loop.run_until_complete(_reply_to(registry, path, text))
    except KeyboardInterrupt:
        return 130
    finally:
        sys.stdout.flush()
        loop.close()

    if "error" not in reply:
        output = msgspec.json.format(msgspec.json.encode(reply["result"]["output"]), indent=2) + b"\n"
        try:
            with os.fdopen(fd_out, "wb") as stdout:
                stdout.write(output)
        except OSError as failed:
            return _unwritable(failed)
        return 0

    error = reply["error"]
    print(f"{error['data'].get('error_code', 'ERROR')}: {error['message']}", file=sys.stderr)
    for detail in ("details", "traceback"):
        if detail in error["data"]:
            print(error["data"][detail], file=sys.stderr)
    return 1


async def _reply_to(registry: Registry, path: str, text: bytes) -> dict[str, Any]:
    import asyncio

    from stepflow.component.process import debugging
    from stepflow.component.server import ComponentServer

    host = LocalHost(asyncio.get_running_loop())
    host.server = ComponentServer(registry, host.receive, show_tracebacks=debugging())
    host.send({"id": "initialize", "method": "initialize", "params": {"capabilities": {"progress": True}}})

    params = {"component": path, "input": msgspec.Raw(text), "run_id": "00000000-0000-0000-0000-000000000000"}
    host.send({"id": _CALL_ID, "method": "components/execute", "params": {**params, "step_id": "call"}})
    return await host.reply


class LocalHost:
    """The host's side of the protocol, for one call. `reply` settles with the answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.server: ComponentServer
        self.reply: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._loop = loop
        self._blobs: dict[str, tuple[bytes, str]] = {}
        """Content and type, by id."""

    def send(self, message: dict[str, Any]) -> None:
        self.server.receive(msgspec.json.encode({"jsonrpc": "2.0", **message}))

    def receive(self, line: bytes) -> None:
        message = msgspec.json.decode(line)
        method = message.get("method")

        if method == "components/progress":
            progress = message["params"]
            share = f"{progress['done']:g}/{progress['total']:g}"
            print(f"progress {share} {progress['message']}".rstrip(), file=sys.stderr)
        elif method is not None:
            self._loop.call_soon(self.send, {"id": message["id"], **self._answer(method, message["params"])})
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
                return {"error": {"code": -32011, "message": "no such blob; --call has only the blobs of its call"}}

        reason = "--call runs a single component; to let it run flows, use it in a flow with `stepflow run`"
        return {"error": {"code": -32601, "message": f"{method} is not possible here: {reason}"}}
