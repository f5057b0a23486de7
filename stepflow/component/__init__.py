"""The SDK for component authors: a function, type hints, and `serve()`.

    from dataclasses import dataclass
    from stepflow.component import component, serve

    @dataclass
    class Person:
        name: str

    @component
    def greet(input: Person) -> str:
        \"\"\"Greet a person.\"\"\"
        return f"Hello, {input.name}!"

    if __name__ == "__main__":
        serve()

The file is a component server: `python server.py` speaks the StepFlow protocol on stdin and stdout, `--list` prints
the components, `--call greet` runs one on JSON from stdin. See `docs/how-to/write-components.md`.

Promises:
- A decorated function stays an ordinary function.
- Every request is answered exactly once, even if the component fails. No component delays another one, except for
  functions registered with `inline=True`.
- Only protocol lines leave on the server's stdout; `print` and `logging` go to the log of the call, or to stderr.
- The import loads nothing heavy; pydantic is loaded only for types that use pydantic.

Limit: retries, timeouts, routes and durability belong to the engine, not to the SDK.

Modules, from the bottom up. The author's side:
- `errors`: exceptions of components and of their requests to the host.
- `reply`: the host's reply to a request.
- `conversations`: requests of several round trips.
- `context`: `Context`, the facts of a call and its requests.

Functions:
- `shapes`: type hints as schemas, decoders and encoders.
- `signature`: a function and its parameters.
- `registry`: `@component`, and the registered functions.

The protocol:
- `wire`: messages.
- `call`: one execute in flight.
- `in_flight`: runs calls and answers each once.
- `threads`, `loop_inbox`: the threads of sync components, and their way back to the event loop.
- `queue_notices`: what the host is told of calls that wait for a thread.
- `failures`: the error answer of a failed call.
- `frames`: the frames of its exception.
- `progress`: progress reports.
- `logs`: what a component prints and logs.
- `host_requests`: requests to the host, matched with replies.
- `server`: `ComponentServer`, independent of the transport.

The process:
- `process`: descriptors, log, event loop, signals, exit.
- `stdio`, `http/`, `pull/`: the transports.
- `tryout`: `--list` and `--call`, without a host.
- `serve`: `serve()`, which chooses a transport.
"""

from __future__ import annotations

from stepflow.component.context import Context
from stepflow.component.conversations import FlowResult, Metadata
from stepflow.component.errors import (
    ComponentError,
    FlowFailed,
    HostError,
    InvalidInput,
    ResourceUnavailable,
)
from stepflow.component.registry import component
from stepflow.component.reply import HostReply as Reply
from stepflow.component.serve import serve

__all__ = [
    "ComponentError",
    "Context",
    "FlowFailed",
    "FlowResult",
    "HostError",
    "InvalidInput",
    "Metadata",
    "Reply",
    "ResourceUnavailable",
    "component",
    "serve",
]
