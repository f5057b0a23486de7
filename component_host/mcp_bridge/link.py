"""What the MCP bridge knows of a connection, whatever carries it: pipes (`mcp_stdio`) or HTTP (`mcp_http`).

A `Link` is one launch of, or one connection to, a server: an asynchronous context manager that gives the SDK's pair of
message streams. It calls `on_loss` once when the server is lost while the context is open.

Imports nothing of the SDK.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stepflow import codec

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

MESSAGE_BYTES_MAX = 4 * codec.PAYLOAD_BYTES_MAX
"""One message of a server. A tool repeats structured content as text, escaped: four times the largest value."""

SIGTERM_GRACE_S = 2.0
"""From SIGTERM to SIGKILL."""


@dataclass(slots=True)
class Trace:
    """What became of one call on the wire, as far as the protocol's own answer does not say it."""

    requests: int = 0
    """HTTP requests made for it: its own, then those that resume its answer or tell of its cancellation."""
    sent: bool = False
    """A part of a request may have left this machine."""
    refused: bool = False
    """The server told that it would not look at the call."""
    problem: str = ""
    """Why there will be no answer; empty if there is one."""

    @property
    def executed(self) -> bool:
        """The server may have executed the call."""
        return self.sent and not self.refused

    def begin_request(self) -> None:
        self.requests += 1
        self.problem = ""  # a stream that is resumed makes a broken one good

    def redirect(self) -> None:
        """Note that the last request was sent elsewhere by a server that did nothing else."""
        self.requests -= 1
        self.sent = self.requests > 0

    def fail(self, why: str, *, refused: bool = False) -> None:
        """Note that the last request failed. Only the call's own request can be refused as such."""
        self.problem = why
        self.refused = refused and self.requests == 1


call_trace: ContextVar[Trace | None] = ContextVar("call_trace", default=None)
"""The trace of the call that the current task makes; what the SDK starts on its behalf inherits it."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A call that went down with its connection."""

    message: str
    """What the server did, as the end of a sentence: `exited with code 1 during the call`."""
    executed: bool
    """The server may have executed it."""


class Link(AbstractAsyncContextManager["TransportStreams"], Protocol):
    """One connection to a server."""

    lost: bool
    """The server ended by itself, cannot be reached, or does not know us any more."""
    drains: bool
    """After a loss, calls in flight may still be answered."""

    async def loss(self, trace: Trace) -> Loss | None:
        """Say how a failed call was lost; None if its error is the server's answer."""
        ...

    def describe_end(self) -> str:
        """Say how the server was lost, for an error text: `exited with code 1`."""
        ...

    def describe_stray_output(self) -> str:
        """Say what it printed where messages belong; empty if nothing."""
        ...

    def stderr_tail(self) -> str: ...
