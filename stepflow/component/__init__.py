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
- Only protocol lines leave on the server's stdout; `print` goes to stderr.
- The import loads nothing heavy; pydantic is loaded only for types that use pydantic.

Limit: retries, timeouts, routes and durability belong to the engine, not to the SDK.

Layers, bottom up: errors, reply, conversations and context (the author's side) · shapes, signature and registry
(functions) · wire, call, in_flight, host_requests and server (the protocol) · process, and the transports stdio, http
and pull · serve.
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
