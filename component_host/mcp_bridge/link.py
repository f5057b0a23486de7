"""The interface of both transports, pipes (`stdio`) and HTTP (`http`), and the types that all of the bridge shares.

A `McpLink` is one launch of, or one connection to, a server: an asynchronous context manager that yields the SDK's pair
of message streams. It calls `on_loss` once when the server is lost while the context is open.

Imports nothing of the SDK.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stepflow import codec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mcp.client._transport import TransportStreams

    from component_host.supervision.process import ServerProcess

MESSAGE_BYTES_MAX = 4 * codec.PAYLOAD_BYTES_MAX
"""One message of a server. A tool repeats structured content as text, escaped: four times the largest value."""

SIGTERM_GRACE_S = 2.0
"""From SIGTERM to SIGKILL."""


OfferKind = Literal["tool", "prompt", "resources"]
"""Which MCP method a component stands for."""

ResultForm = Literal["structured", "content"]
"""What a step gets: a result's structured content or text, or always its list of content blocks."""


@dataclass(frozen=True, slots=True)
class McpServerConfig:
    """How to reach one server: a command, a URL, or a command that serves a URL. Variables are substituted."""

    command: str = ""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit_env: bool = False
    url: str = field(default="", repr=False)
    """Of a server over streamable HTTP; empty: stdio. See `http` for `{port}`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    result: ResultForm = "structured"
    start_timeout_s: float = 30.0
    """From launch to listed tools."""
    mode: Literal["auto", "legacy", "modern"] = "auto"
    """The era to speak. `auto` asks the server, which costs a server that starts slowly up to 10 s more."""


@dataclass(slots=True)
class CallTrace:
    """The fate of one call on the wire, where the protocol's own answer does not tell it."""

    requests: int = 0
    """HTTP requests of the call: its own, then those that resume its answer or announce its cancellation."""
    sent: bool = False
    """A part of a request may have left this machine."""
    refused: bool = False
    """The server refused the call unread."""
    problem: str = ""
    """Why no answer will come; empty if one does."""
    retry_after_ms: int | None = None
    """The pause that the server asked for with a refusal."""
    answer: dict[str, Any] | None = None
    """The result, as the server sent it."""

    @property
    def executed(self) -> bool:
        """Return True if the server may have executed the call."""
        return self.sent and not self.refused

    def begin_request(self) -> None:
        self.requests += 1
        self.problem = ""  # a resumed stream replaces the broken one

    def redirect(self) -> None:
        """Take back the last request: the server only redirected it."""
        self.requests -= 1
        self.sent = self.requests > 0

    def fail(self, why: str, *, refused: bool = False) -> None:
        """Record that the last request failed. Only the call's own request, the first, can be refused."""
        self.problem = why
        self.refused = refused and self.requests == 1


call_trace: ContextVar[CallTrace | None] = ContextVar("call_trace", default=None)
"""Trace of the current task's call. Tasks that the SDK starts for the call inherit it."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a call was lost with its connection."""

    message: str
    """Predicate of a sentence about the server: `exited with code 1 during the call`."""
    executed: bool
    """The server may have executed the call."""


class McpLink(AbstractAsyncContextManager["TransportStreams"], Protocol):
    """One connection to a server."""

    lost: bool
    """The server exited by itself, is unreachable, or has forgotten the session."""
    drains: bool
    """After a loss, calls in flight may still be answered."""

    @property
    def process(self) -> ServerProcess | None:
        """The server's process; None if it has none here."""
        ...

    @property
    def lose_session(self) -> Callable[[str], None] | None:
        """Declares the connection lost with its session, for a reason; None: it has no session."""
        ...

    @property
    def kill(self) -> Callable[[], None] | None:
        """Ends the server's process; None: it has none here."""
        ...

    async def loss(self, trace: CallTrace) -> Loss | None:
        """Explain how a failed call was lost. None: the error is the server's answer."""
        ...

    def describe_end(self) -> str:
        """Return how the server was lost, for an error text: `exited with code 1`."""
        ...

    def describe_stray_output(self) -> str:
        """Return what the server printed on stdout besides messages; empty if nothing."""
        ...

    def stderr_tail(self) -> str:
        """Return the last lines of stderr if no call was ever sent; see `ProcessReport`. Empty without a process."""
        ...

    def stderr_of_run(self) -> str:
        """Return the last lines of stderr for the failures of calls in flight. Empty without a process."""
        ...

    def serve_run(self, run_id: str, *, idle: bool) -> None:
        """See `ServerProcess.serve_run`."""
        ...
