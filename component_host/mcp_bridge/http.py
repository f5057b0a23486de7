"""The streamable HTTP transport: one connection to a server that runs elsewhere, or that is started here on a port.

The protocol (sessions, event streams, resumption) is the SDK's. `http_transport` sits below it as the transport of the
SDK's HTTP client.

- The connection is lost when the server is unreachable, when it has forgotten the session, or when its stream of change
  notifications breaks and cannot be reopened.
- Headers go to the configured origin only. Neither they nor a URL's password or query appear in any text.
- `{port}` in the URL, `args` and `env` of a server started here is a free port, chosen for each launch.

Not here: eras and restarts (`connection`, `supervisor`), results (`results`). Imports the SDK: import it late.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
from mcp.client.streamable_http import streamable_http_client

from component_host.mcp_bridge.http_transport import McpHttpTransport
from component_host.mcp_bridge.link import MESSAGE_BYTES_MAX, SIGTERM_GRACE_S, Loss
from component_host.supervision.process import ServerProcess
from stepflow.errors import Invalid
from stepflow.proxies import proxy_for
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from mcp.client._transport import TransportStreams

    from component_host.mcp_bridge.link import CallTrace
    from component_host.supervision.spec import ProcessSpec

CONNECT_TIMEOUT_S = 10.0
PROBE_S = 0.02
"""Interval of probes for the port of a server that was started here."""

EXIT_KNOWN_S = 0.5
"""A broken connection waits this long for the exit status of the process behind it."""

PORT = "{port}"

log = get_logger("component_host.mcp")

_ILLEGAL_IN_HEADER = re.compile(r"[^\t\x20-\x7e\x80-\xff]")


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Where a server listens, with variables substituted."""

    plugin: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class McpHttpServer:
    """One connection to a server, and its process if `spec` starts one. See `link.McpLink`."""

    def __init__(
        self,
        target: HttpTarget,
        spec: ProcessSpec | None,
        on_loss: Callable[[], None],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`environ` names the proxies. Raises: Invalid, a malformed URL, header or proxy."""
        _check_target(target)
        self.lost = False
        self.drains = spec is None
        self.in_session = False
        port = str(free_port()) if spec is not None and PORT in target.url else ""
        self._url = httpx2.URL(target.url.replace(PORT, port))
        self._proxy = proxy_for(str(self._url), environ)
        self._headers = {name: value.strip() for name, value in target.headers.items()}
        self.process: ServerProcess | None = None
        if spec is not None:
            spec = replace(
                spec,
                args=[arg.replace(PORT, port) for arg in spec.args],
                env={name: value.replace(PORT, port) for name, value in spec.env.items()},
            )
            self.process = ServerProcess(spec, on_output=_ignore, on_exit=self._handle_exit)
        self._plugin = target.plugin
        self._on_loss = on_loss
        self._how = ""
        self._ending = False
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> TransportStreams:
        """Start the process if there is one, and open the HTTP client. Raises: StepflowError, OSError."""
        async with contextlib.AsyncExitStack() as stack:
            if self.process is not None:
                self.process.start()
                stack.push_async_callback(self._end_process)
                await self._listening()
            client = httpx2.AsyncClient(
                transport=McpHttpTransport(self, self._proxy),
                headers=self._headers,
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            )
            await stack.enter_async_context(client)
            streams = await stack.enter_async_context(
                streamable_http_client(
                    str(self._url),
                    http_client=client,
                    terminate_on_close=self.process is None,
                    max_sse_event_size=MESSAGE_BYTES_MAX,
                )
            )
            self._stack = stack.pop_all()
        return streams

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._ending = True
        return await self._stack.__aexit__(exc_type, exc, traceback)

    async def loss(self, trace: CallTrace) -> Loss | None:
        process = self.process
        if process is not None and trace.problem:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_KNOWN_S):
                    await process.ended()
        if process is not None and self.lost:
            return Loss(f"{self.describe_end()} during the call", executed=trace.executed)
        return Loss(trace.problem, executed=trace.executed) if trace.problem else None

    @property
    def lose_session(self) -> Callable[[str], None] | None:
        return self.lose if self.in_session else None

    @property
    def kill(self) -> Callable[[], None] | None:
        return None if self.process is None else self.process.kill

    def describe_end(self) -> str:
        if self.process is not None and self.process.returncode is not None:
            return self.process.exit_text()
        return self._how or "was not lost"

    def describe_stray_output(self) -> str:
        return ""

    def stderr_tail(self) -> str:
        return self.process.stderr_tail() if self.process is not None else ""

    def stderr_of_run(self) -> str:
        return self.process.stderr_of_run() if self.process is not None else ""

    def serve_run(self, run_id: str, *, idle: bool) -> None:
        if self.process is not None:
            self.process.serve_run(run_id, idle=idle)

    def lose(self, how: str) -> None:
        """Declare the connection lost. Safe to repeat."""
        if not (self.lost or self._ending):
            self.lost = True
            self._how = how
            self._on_loss()

    def _handle_exit(self) -> None:
        self.lose("")

    async def _listening(self) -> None:
        """Wait until the server listens on its port. Raises: ConnectionError, the process has ended."""
        host, port = self._url.host, self._url.port or (443 if self._url.scheme == "https" else 80)
        while not self.lost:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(PROBE_S)
            else:
                writer.close()
                return
        raise ConnectionError("the process has ended")

    async def _end_process(self) -> None:
        assert self.process is not None
        self._ending = True
        ending = asyncio.create_task(self.process.stop(SIGTERM_GRACE_S), name=f"mcp {self._plugin} end")
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending  # else a cancelled owner would leak the process
            raise


def _check_target(target: HttpTarget) -> None:
    """Refuse a target that cannot be sent to. (The library's own errors would quote the values.)"""
    where = f"plugin {target.plugin!r}"
    try:
        httpx2.URL(text := target.url.replace(PORT, "1"))
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except (httpx2.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise Invalid("URL_INVALID", f"{where}: `url` must be like https://host/mcp", plugin=target.plugin)
    for name, value in target.headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or _ILLEGAL_IN_HEADER.search(value.strip()):
            raise Invalid(
                "HEADER_INVALID",
                f"{where}: the header {name!r} has characters that HTTP does not allow (its value is not shown); "
                "does its variable contain a line break?",
                plugin=target.plugin,
                header=name,
            )


def free_port() -> int:
    """Return an unused port. If another process takes it first, the server exits and is launched on another port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ignore(_chunk: bytes) -> None:
    """Discard stdout, which carries no messages here; unread, it would block the server."""
