"""The connection to an HTTP server, through all restarts: a process started here, or a remote server.

- The health of a remote server is polled: new instances are greeted (they need the address for blobs), and a returned
  server is used again.
- A slow health reply proves nothing: a component that computes blocks these servers. Only a refused connection counts
  as a loss. Calls in flight go on: the server may merely be shutting down.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Protocol

from component_host.stepflow_bridge.http.endpoint import HttpEndpoint, LostError, NotProtocolError
from component_host.stepflow_bridge.http.handshake import await_health
from component_host.stepflow_bridge.http.process import PORTS_TRIED_MAX, EndedError, ListeningProcess, PortTakenError
from component_host.stepflow_bridge.protocol import ECHOES, ServerRefusedError
from component_host.supervision.spec import ProcessSpec
from stepflow.errors import Unavailable
from stepflow.redaction import url_without_credentials
from stepflow.telemetry import get_logger
from stepflow.vital import keep_running

if TYPE_CHECKING:
    from component_host.backend import BackendContext
    from component_host.stepflow_bridge.http.config import HttpServerConfig
    from component_host.supervision.process import ServerProcess
    from stepflow.errors import Failure

HEALTH_INTERVAL_S = 2.0

INSTANCES_MAX = 1_000
"""Greeted instances remembered; a second greeting is harmless."""

RETURN_WAIT_S = 5.0
"""Time limit of one attempt to reach a remote server again."""

log = get_logger("component_host.stepflow_http")


class ConnectionOwner(Protocol):
    """The server behind a connection."""

    async def greet(self, endpoint: HttpEndpoint, instance: str = "") -> None:
        """Shake hands. Raises: LostError, NotProtocolError, ServerRefusedError."""
        ...

    def handle_new_instance(self) -> None:
        """Handle the greeting of a further instance: the listing may differ."""
        ...

    def handle_loss(self, reason: str, failure: Failure | None) -> None:
        """Handle the loss of the server; calls in flight fail with `failure`, if given."""
        ...


class HttpConnection(Protocol):
    """A way to one server."""

    endpoint: HttpEndpoint | None
    gone: asyncio.Event
    """Set while the server cannot be reached."""

    @property
    def process(self) -> ServerProcess | None:
        """The present or last process; None for a remote server."""
        ...

    async def open(self) -> None:
        """Make ready and greet. After an error `close` is required. Raises: Invalid, Unavailable."""
        ...

    def stop_watch(self) -> None: ...

    async def close(self) -> None: ...


class ProcessConnection:
    """A server started here, on loopback; `open` starts a process."""

    def __init__(self, spec: ProcessSpec, config: HttpServerConfig, owner: ConnectionOwner) -> None:
        self.endpoint: HttpEndpoint | None = None
        self.gone = asyncio.Event()
        self._spec = spec
        self._config = config
        self._owner = owner
        self._listening: ListeningProcess | None = None
        self._was_ready = False

    @property
    def process(self) -> ServerProcess | None:
        return None if self._listening is None else self._listening.process

    async def open(self) -> None:
        for _ in range(PORTS_TRIED_MAX):
            await self._close_endpoint()
            self.gone.clear()
            self._listening = listening = ListeningProcess(self._spec, self._handle_exit)
            listening.start()
            try:
                await self._bring_up(listening)
            except PortTakenError:
                log.info("the server's port was taken; trying another", plugin=self._spec.plugin, port=listening.port)
            else:
                self._was_ready = True
                return
        raise listening.process.start_error("SERVER_EXITED", "found none of its ports free")

    async def _bring_up(self, listening: ListeningProcess) -> None:
        process = listening.process

        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                self.endpoint = HttpEndpoint(f"http://127.0.0.1:{await listening.announced()}/")
                await await_health(self.endpoint, lambda _: listening.check())
                listening.check()
                listening.release_port()
                await self._owner.greet(self.endpoint)

        except TimeoutError:
            location = f"at port {listening.port}" if listening.port else "on stdout with its port"
            hint = "" if listening.port else " (a server up to 0.7 needs `{port}` in its `args`)"
            text = f"did not answer {location} within {self._config.start_timeout_s:g} s{hint}"
            raise process.start_error("SERVER_NOT_RESPONDING", text) from None
        except PortTakenError:
            raise

        except (EndedError, LostError) as error:
            if isinstance(error, LostError) and process.returncode is None:
                raise process.start_error("SERVER_NOT_RESPONDING", f"broke off the handshake: {error}") from None
            raise process.start_error("SERVER_EXITED", f"{process.exit_text()} before it was ready") from None
        except (NotProtocolError, ServerRefusedError) as error:
            raise process.start_error("SERVER_REFUSED", str(error)) from None

    def _handle_exit(self) -> None:
        process = self.process
        assert process is not None
        self._owner.handle_loss(process.exit_text(), process.loss())
        self.gone.set()

    def stop_watch(self) -> None:
        """Do nothing: the exit of a process needs no polling."""

    async def close(self) -> None:
        await self._close_endpoint()
        if self._listening is not None:
            await self._listening.stop(self._config.stop_grace_s if self._was_ready else 0.0)

    async def _close_endpoint(self) -> None:
        if self.endpoint is not None:
            await self.endpoint.close()
            self.endpoint = None


class RemoteConnection:
    """A server elsewhere; `open` reaches the server, then a task polls its health."""

    def __init__(self, context: BackendContext, config: HttpServerConfig, owner: ConnectionOwner) -> None:
        self.endpoint: HttpEndpoint | None = None
        self.gone = asyncio.Event()
        self.process: ServerProcess | None = None
        self._plugin = context.name
        self._config = config
        self._environ = context.environ
        self._shown_url = context.shown_config(config).url
        self._owner = owner
        self._was_ready = False
        self._watch: asyncio.Task[None] | None = None
        self._instances: set[str] = set()
        """Ids of greeted instances. One address can lead to several."""

    async def open(self) -> None:
        self.gone.clear()
        config = self._config
        self.endpoint = endpoint = self.endpoint or HttpEndpoint(config.url, config.headers, environ=self._environ)
        server = f"plugin {self._plugin!r}: the server at {url_without_credentials(self._shown_url)}"
        patience_s = config.start_timeout_s
        if self._was_ready:
            patience_s = min(patience_s, RETURN_WAIT_S)
        reason: Exception = TimeoutError(f"it does not answer{endpoint.way}")

        def note(error: Exception) -> None:
            nonlocal reason
            if str(error):
                reason = error

        try:
            async with asyncio.timeout(patience_s):
                self._instances = {await await_health(endpoint, note)}
                await self._owner.greet(endpoint)
        except (TimeoutError, LostError) as error:
            note(error)
            text = f"{server} was not ready within {patience_s:g} s: {reason}"
            raise Unavailable("SERVER_NOT_RESPONDING", text, plugin=self._plugin) from None
        except (NotProtocolError, ServerRefusedError) as error:
            raise Unavailable("SERVER_REFUSED", f"{server} {error}", plugin=self._plugin) from None

        watch = partial(self._watch_health, endpoint)
        self._watch = asyncio.create_task(
            keep_running(log, "the watch of a server", watch, plugin=self._plugin), name=f"watch {self._plugin}"
        )
        self._was_ready = True

    async def _watch_health(self, endpoint: HttpEndpoint) -> None:
        """Greet new instances until the address refuses a connection."""
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            try:
                async with asyncio.timeout(self._config.request_timeout_s):
                    await self._greet_new_instance(endpoint)
            except LostError as error:
                if error.refused:
                    self._owner.handle_loss(str(error), None)
                    self.gone.set()
                    return
            except (NotProtocolError, ServerRefusedError, TimeoutError) as error:
                log.debug("health is unknown", plugin=self._plugin, error=str(error))

    async def _greet_new_instance(self, endpoint: HttpEndpoint) -> None:
        instance = await endpoint.health()
        if instance in self._instances:
            return

        await self._owner.greet(endpoint, instance)
        if len(self._instances) >= INSTANCES_MAX:
            self._instances.clear()
        self._instances.add(instance)
        self._owner.handle_new_instance()
        log.info("greeted a new instance of the server", plugin=self._plugin)

    def stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def close(self) -> None:
        if self.endpoint is not None:
            await self.endpoint.close()
            self.endpoint = None


def make_connection(
    context: BackendContext, config: HttpServerConfig, blob_secret: str, owner: ConnectionOwner
) -> HttpConnection:
    """Build the connection for a configuration; `blob_secret` is removed from the stderr of processes."""
    if not config.command:
        return RemoteConnection(context, config, owner)
    spec = ProcessSpec.of(context, config, stderr_hidden=ECHOES, secrets=(blob_secret,))
    return ProcessConnection(spec, config, owner)
