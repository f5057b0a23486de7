"""Bridge to StepFlow servers over HTTP: stepflow-py 0.9 to 0.11, 0.2 to 0.7 with `--http`, and servers with our SDK.

Promises:
- A call-back belongs to the execute on whose answer it arrived, and is answered exactly once, also after the call that
  made it has ended: a component of these servers waits for ever otherwise.
- A component that waits for a flow lends its place in `concurrency` to what that flow may call.
- A call whose connection breaks fails with UNREACHABLE; it may have run. When a process of ours ends, all its calls do.
- A server that runs elsewhere is asked for its health: it is greeted again when it was replaced (it would know no
  address for blobs otherwise), and spoken to again when it is back.

No generation can be told to stop work (our SDK can): a cancelled call is forgotten, keeps its place until its component
has ended, and its call-backs are answered with errors.

Not here: the wire (`http_endpoint`), the start of a process (`http_process`), who gets a call (`stepflow_pool`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, Raw

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.blob_api import BlobApi
from component_host.stepflow_bridge.blob_refs import with_blobs
from component_host.stepflow_bridge.callbacks import WAITING_METHODS, answer
from component_host.stepflow_bridge.http_endpoint import Endpoint, LostError, NotProtocolError, TooLargeError
from component_host.stepflow_bridge.http_process import PORTS_TRIED_MAX, EndedError, ListeningProcess, PortTakenError
from component_host.stepflow_bridge.pool import NO_ROOM, StepflowPool
from component_host.supervision.process import ProcessSpec
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Code, Failure, StepflowError, Unavailable
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from component_host.backend import BackendContext, BlobAccess, ComponentInfo, HostCall

CONCURRENCY_DEFAULT = 1_000
"""Executes at a time in one server: each has a connection, which is a descriptor on either side."""

CALLBACKS_MAX = 1_000
"""Requests of one server that are being served."""

READY_POLL_S = 0.05
READY_WAIT_S = 1.0
"""For one answer about its health, while a server starts."""

HEALTH_INTERVAL_S = 2.0

INSTANCES_MAX = 1_000
"""Of those that were greeted; to greet one again does no harm."""

RETURN_WAIT_S = 5.0
"""How long one attempt to speak again to a server that runs elsewhere waits for it to be there."""

EXIT_WAIT_S = 1.0
"""A connection breaks before the system tells of the end of the process; its exit code belongs into the failure."""

TAIL_WAIT_S = 1.0
"""For the end of a stream after the final message. 0.10 and 0.11 never send one."""

ANSWER_TRIES = 3
ANSWER_TIMEOUT_S = 30.0
ABANDON_WAIT_S = 1.0
"""For error answers to call-backs that are open at the end."""

_REPLY_BYTES_MAX = PAYLOAD_BYTES_MAX + 1024 * 1024

log = get_logger("component_host.stepflow_http")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServerConfig:
    """Where a server is, or how to start it. Substitution is done. With a `command`, `url` and `headers` are unused."""

    command: str = ""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    inherit_env: bool = False
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    processes: int = 1
    concurrency: int | None = None
    """Executes at a time in each process."""
    blob_threshold: int = 0
    """Members of outputs above this many bytes come as blobs from 0.10 and 0.11; 0: never."""
    blob_host: str = "127.0.0.1"
    """The address of this machine at which such servers find blobs."""
    start_timeout_s: float = 30.0
    request_timeout_s: float = 30.0
    """For questions about the server itself; calls have their own timeouts."""
    stop_grace_s: float = 2.0


class StepflowHttpBackend(StepflowPool):
    """A pool of processes that listen on loopback, or one server that runs elsewhere."""

    def __init__(self, context: BackendContext, config: HttpServerConfig) -> None:
        super().__init__(context)
        self._config = config
        self._api = BlobApi(self._blobs)
        count = config.processes if config.command else 1
        self._http_servers = [HttpServer(context, config, self, self._api) for _ in range(count)]
        self.servers = self._http_servers

    async def start(self) -> None:
        await self._api.start(self._config.blob_host)
        await super().start()

    async def close(self) -> None:
        await super().close()
        await self._api.close()

    def _blobs(self) -> BlobAccess | None:
        """All calls of a host use the same blobs, so those of any call will do."""
        return next((call.blobs for server in self._http_servers for call in server.calls()), None)


class HttpServer:
    """A server and what is said with it, through all its restarts. Implements `stepflow_pool.Server`."""

    def __init__(self, context: BackendContext, config: HttpServerConfig, pool: StepflowPool, api: BlobApi) -> None:
        self.components: list[ComponentInfo] = []
        self.lists_all = False
        self.end_was_wanted = False
        self.how_it_ended = ""
        self._ready = False
        self._lent: Counter[int] = Counter()
        """By execute that has lent its place: the flows that it waits for."""
        """Places of executes that wait for a flow."""
        self._pool = pool
        self._api = api
        self._config = config
        self._plugin = context.name
        self._environ = context.environ
        self._spec = ProcessSpec.of(context, config, stderr_hidden=protocol.ECHOES, secrets=(api.secret,))
        self._concurrency = float(config.concurrency or CONCURRENCY_DEFAULT)
        self._spans = protocol.SpanIds(secrets.randbits(63))
        self._id_prefix = secrets.token_hex(8)  # several hosts may speak to one server
        self._last_id = 0
        self._executes: dict[int, HostCall | None] = {}
        """In flight by number; None for one that was abandoned and still runs in the server."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """One for each exchange of an execute."""
        self._callbacks: dict[asyncio.Task[None], int] = {}
        """Being served, with the execute each belongs to."""
        self._endpoint: Endpoint | None = None
        self._process: ListeningProcess | None = None
        self._gone = asyncio.Event()
        self._was_ready = False
        self._instances: set[str] = set()
        """Those that were greeted. One address can lead to several."""
        self._cancels = False
        self._minor: set[asyncio.Task[None]] = set()
        self._check: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start it where it is ours, wait until it listens, and shake hands. Raises as `StepflowPool.start`."""
        self._gone.clear()
        self.end_was_wanted = False
        try:
            if self._config.command:
                await self._start_process()
            else:
                await self._reach()
        except BaseException:
            await self._give_up()
            raise
        self._was_ready = True
        self._ready = not self._gone.is_set()  # it may have ended since
        log.debug("server ready", plugin=self._plugin, components=len(self.components))

    async def stop(self) -> None:
        """Answer what is open, and end the process; calls in flight fail. Safe to repeat."""
        self._ready = False
        for task in (self._check, self._watch, *self._callbacks):
            if task is not None:
                task.cancel()
        answers = [*self._callbacks, *self._minor]
        if answers:
            await asyncio.wait(answers, timeout=ABANDON_WAIT_S)
        for task in self._minor:
            task.cancel()
        self._fail_all(Failure(Code.UNREACHABLE, f"plugin {self._plugin!r} was stopped"))
        await self._give_up()

    def calls(self) -> list[HostCall]:
        """Return the calls in flight."""
        return [call for call in self._executes.values() if call is not None]

    @property
    def room(self) -> float:
        return self._concurrency - len(self._executes) + len(self._lent) if self._ready else NO_ROOM

    @property
    def in_flight(self) -> int:
        return len(self._executes)

    @property
    def process_id(self) -> int:
        return 0 if self._process is None else self._process.process.pid

    def stderr_tail(self) -> str:
        return "" if self._process is None else self._process.process.stderr_tail()

    async def ended(self) -> None:
        await self._gone.wait()

    async def _give_up(self) -> None:
        if self._endpoint is not None:
            await self._endpoint.close()
            self._endpoint = None
        if self._process is not None:
            await self._process.stop(self._config.stop_grace_s if self._was_ready else 0.0)

    async def _start_process(self) -> None:
        for _ in range(PORTS_TRIED_MAX):
            if self._endpoint is not None:
                await self._endpoint.close()
                self._endpoint = None
            self._process = listening = ListeningProcess(self._spec, self._handle_exit)
            listening.start()
            try:
                await self._bring_up(listening)
                return
            except PortTakenError:
                log.info("somebody took the server's port; trying another", plugin=self._plugin, port=listening.port)
                self._gone.clear()
        raise listening.process.start_error("SERVER_EXITED", "found none of its ports free")

    async def _bring_up(self, listening: ListeningProcess) -> None:
        process = listening.process
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                self._endpoint = Endpoint(f"http://127.0.0.1:{await listening.announced()}/")
                await self._until_healthy(self._endpoint, lambda _: listening.check())
                listening.check()
                listening.let_port_go()
                await self._shake_hands(self._endpoint)
        except TimeoutError:
            where = f"at port {listening.port}" if listening.port else "on stdout with its port"
            hint = "" if listening.port else " (a server up to 0.7 needs `{port}` in its `args`)"
            what = f"did not answer {where} within {self._config.start_timeout_s:g} s{hint}"
            raise process.start_error("SERVER_NOT_RESPONDING", what) from None
        except PortTakenError:
            raise
        except (EndedError, LostError) as error:
            if isinstance(error, LostError) and process.returncode is None:
                raise process.start_error("SERVER_NOT_RESPONDING", f"broke off the handshake: {error}") from None
            raise process.start_error("SERVER_EXITED", f"{process.exit_text()} before it was ready") from None
        except (NotProtocolError, _RefusedError) as error:
            raise process.start_error("SERVER_REFUSED", str(error)) from None

    async def _reach(self) -> None:
        """Shake hands with a server that runs elsewhere."""
        self._endpoint = self._endpoint or Endpoint(self._config.url, self._config.headers, environ=self._environ)
        where = f"plugin {self._plugin!r}: the server at {self._endpoint.shown}"
        patience_s = self._config.start_timeout_s
        if self._was_ready:
            patience_s = min(patience_s, RETURN_WAIT_S)
        why: Exception = TimeoutError(f"it does not answer{self._endpoint.way}")

        def note(error: Exception) -> None:
            nonlocal why
            if str(error):
                why = error

        try:
            async with asyncio.timeout(patience_s):
                await self._until_healthy(self._endpoint, note)
                await self._shake_hands(self._endpoint)
        except (TimeoutError, LostError) as error:
            note(error)
            raise Unavailable(
                "SERVER_NOT_RESPONDING", f"{where} was not ready within {patience_s:g} s: {why}", plugin=self._plugin
            ) from None
        except (NotProtocolError, _RefusedError) as error:
            raise Unavailable("SERVER_REFUSED", f"{where} {error}", plugin=self._plugin) from None
        self._watch = asyncio.create_task(self._watch_health(self._endpoint), name=f"watch {self._plugin}")

    async def _until_healthy(self, endpoint: Endpoint, failed: Callable[[Exception], None]) -> None:
        """Ask until it answers; `failed` gets what kept it from that, each time, and may raise."""
        while True:
            try:
                async with asyncio.timeout(READY_WAIT_S):  # it may be somebody else's port, who takes it and is silent
                    instance = await endpoint.health()
            except (LostError, NotProtocolError, TimeoutError) as error:
                failed(error)
                await asyncio.sleep(READY_POLL_S)
            else:
                self._instances = {instance}
                return

    async def _shake_hands(self, endpoint: Endpoint, instance: str = "") -> None:
        threshold = self._config.blob_threshold
        blobs = {"blobApiUrl": self._api.url, **({"blobThreshold": threshold} if threshold else {})}
        reply = await self._ask(endpoint, "initialize", protocol.initialize_params(self._plugin, **blobs), instance)
        capabilities = protocol.capabilities_of(reply)
        self._cancels = capabilities is not None and capabilities.cancel
        self.lists_all = capabilities is not None  # from 0.9 on, components with a path pattern are not listed
        await endpoint.tell(protocol.line_of(protocol.Notification("initialized", {})), instance)
        reply = await self._ask(endpoint, "components/list", {}, instance)
        try:
            self.components = protocol.listing_of(reply)
        except protocol.DECODE_ERRORS as error:
            raise _RefusedError(f"sent a list of components that is none: {error}") from None

    async def _watch_health(self, endpoint: Endpoint) -> None:
        """Greet instances that have not been; tell the pool when nobody listens any more.

        A health that is slow means nothing: a component that computes blocks these servers. Calls in flight are left
        alone: theirs may be a server that is only about to end.
        """
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            try:
                async with asyncio.timeout(self._config.request_timeout_s):
                    instance = await endpoint.health()
                    if instance not in self._instances:
                        await self._shake_hands(endpoint, instance)
                        if len(self._instances) >= INSTANCES_MAX:
                            self._instances.clear()
                        self._instances.add(instance)
                        self._pool.listing_of(self)
                        log.info("greeted a new instance of the server", plugin=self._plugin)
            except LostError as error:
                if error.refused:
                    self._ready = False
                    self.how_it_ended = str(error)
                    self._gone.set()
                    return
            except (NotProtocolError, _RefusedError, TimeoutError) as error:
                log.debug("health is not known", plugin=self._plugin, error=str(error))

    def _handle_exit(self) -> None:
        assert self._process is not None
        process = self._process.process
        self._ready = False
        self.how_it_ended = process.exit_text()
        self._fail_all(process.loss())
        self._gone.set()

    def _fail_all(self, failure: Failure) -> None:
        executes, self._executes = self._executes, {}
        for task in (*self._tasks.values(), *self._callbacks):
            task.cancel()
        self._tasks.clear()
        for call in executes.values():
            if call is not None:
                call.fail(failure)

    # --- calls --------------------------------------------------------------------------------------------------

    def takes(self, call: HostCall) -> bool:  # noqa: ARG002  # what waits for a flow has lent its place
        return self.room > 0

    def send(self, call: HostCall) -> None:
        """Send an execute. Only while `room` is above 0."""
        endpoint = self._endpoint
        assert endpoint is not None
        assert self.room > 0
        number = self._last_id = self._last_id + 1
        request_id = f"{self._id_prefix}-{number}"
        body = protocol.execute_line(call, number, self._spans, request_id)
        call.backend_state = (self, number)
        self._executes[number] = call
        self._tasks[number] = asyncio.create_task(self._execute(endpoint, number, body))

    def abandon(self, number: int) -> None:
        """Stop an execute if the server can, and forget its call."""
        if self._executes.get(number) is None:
            return
        self._executes[number] = None  # it keeps its place until the server answers
        for task, owner in list(self._callbacks.items()):
            if owner == number:
                task.cancel()
        process = self._process
        if self._cancels:
            self._soon(self._tell_cancel(f"{self._id_prefix}-{number}"))
        elif process is None:
            return  # nothing of ours
        elif self.room < 1 and not self.calls():
            # Nothing but abandoned work, no room for more, and no word to stop it: a new process is the only way on.
            self.end_was_wanted = True
            self._end(process)
        elif self._check is None or self._check.done():
            self._check = asyncio.create_task(self._check_alive(process), name=f"check {self._plugin}")

    def _end(self, process: ListeningProcess) -> None:
        """Kill the present process; from this moment on, calls wait for the next one."""
        if process is self._process:
            self._ready = False
        process.process.kill()

    async def _check_alive(self, process: ListeningProcess) -> None:
        """End a process that has stopped answering: code that blocks its event loop blocks all its calls."""
        assert self._endpoint is not None
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await self._endpoint.health()
        except TimeoutError:
            log.warning("server does not answer; ending it", plugin=self._plugin)
            self._end(process)
        except (LostError, NotProtocolError):
            return

    async def _tell_cancel(self, request_id: str) -> None:
        assert self._endpoint is not None
        with contextlib.suppress(LostError, NotProtocolError):
            line = protocol.line_of(protocol.Notification("components/cancel", {"id": request_id}))
            await self._endpoint.tell(line)

    async def _execute(self, endpoint: Endpoint, number: int, body: bytes) -> None:
        try:
            async with aclosing(endpoint.exchange(body)) as messages:
                async for line, instance in messages:
                    if line.method is None:
                        await self._settle(number, line)
                        break
                    self._hear(endpoint, number, line, instance)
                else:
                    raise LostError("the answer ended before the result")
                with contextlib.suppress(LostError, NotProtocolError, TimeoutError):
                    async with asyncio.timeout(TAIL_WAIT_S):  # read to its end, the connection can be used again
                        async for _ in messages:
                            pass
        except LostError as error:
            await self._lose(number, error)
        except TooLargeError:
            message = f"the result is larger than the limit of {PAYLOAD_BYTES_MAX:,} bytes"
            self._finish(number, Failure(Code.COMPONENT_FAILED, message))
        except NotProtocolError as error:
            code = Code.UNREACHABLE if error.status in _PROXY_STATUSES else Code.WORKER_ERROR
            self._finish(number, Failure(code, f"server {self._plugin!r} {error}"))
        except Exception as error:  # whatever it is, the call must end
            log.exception("an exchange failed by mistake", plugin=self._plugin)
            self._finish(number, Failure(Code.WORKER_ERROR, f"{type(error).__name__} inside the component host"))

    async def _lose(self, number: int, error: LostError) -> None:
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_WAIT_S):
                    await self._process.process.ended()  # then `_handle_exit` has ended the call, and this task
        message = f"the connection to server {self._plugin!r} broke before the result: {error}"
        self._finish(number, Failure(Code.UNREACHABLE, message))

    async def _settle(self, number: int, line: protocol.Line) -> None:
        call = self._executes.get(number)
        failure = None
        if call is not None:
            result = line.result
            if self._config.blob_threshold and result is not UNSET and isinstance(result.output, Raw):
                try:
                    output = await with_blobs(bytes(result.output), call.blobs)
                    line = protocol.Line(result=protocol.Output(output=Raw(output)))
                except StepflowError as error:
                    message = f"a blob in the result cannot be read: {error.message}"
                    failure = Failure(Code.COMPONENT_FAILED, message)
            if line.error is not UNSET:
                self._redact(line.error)
            if failure is None:
                protocol.settle(call, line, self._plugin)
        self._finish(number, failure)

    def _redact(self, error: protocol.ErrorIn) -> None:
        """Take the secret out of what will be stored: a blob that is not there is told with its whole address."""
        secret = self._api.secret
        error.message = error.message.replace(secret, "[REDACTED]")
        if isinstance(error.data, Raw) and secret.encode() in (data := bytes(error.data)):
            error.data = Raw(data.replace(secret.encode(), b"[REDACTED]"))

    def _finish(self, number: int, failure: Failure | None) -> None:
        """Give an execute's place back; it fails unless it is settled."""
        self._tasks.pop(number, None)
        if number not in self._executes:
            return  # of a process that has ended
        call = self._executes.pop(number)
        if call is not None and failure is not None:
            call.fail(failure)
        self._pool.has_room(self)

    # --- what comes on the way --------------------------------------------------------------------------------------

    def _hear(self, endpoint: Endpoint, number: int, line: protocol.Line, instance: str) -> None:
        call = self._executes.get(number)
        if line.id is None:
            if call is not None and line.method == "components/progress" and line.params is not UNSET:
                with contextlib.suppress(*protocol.DECODE_ERRORS):
                    progress = protocol.decode_progress(line.params)
                    call.progress(progress.done or 0.0, progress.total or 0.0, progress.message or "")
        elif call is None:
            self._refuse(endpoint, line.id, instance, "the execute that asks was cancelled")
        elif len(self._callbacks) >= CALLBACKS_MAX:
            self._refuse(endpoint, line.id, instance, f"{CALLBACKS_MAX} requests of this server are being served")
        else:
            task = asyncio.create_task(self._serve(endpoint, number, call, line, instance))
            self._callbacks[task] = number

            def served(task: asyncio.Task[None], request_id: int | str = line.id) -> None:
                del self._callbacks[task]
                if task.cancelled():  # in its first moment, with nothing answered: the component would wait for ever
                    self._refuse(endpoint, request_id, instance, "the execute that asks was cancelled")

            task.add_done_callback(served)

    async def _serve(self, endpoint: Endpoint, number: int, call: HostCall, line: protocol.Line, instance: str) -> None:
        assert line.id is not None
        assert line.method is not None
        lends = line.method in WAITING_METHODS
        try:
            if lends:
                self._lent[number] += 1
                self._pool.has_room(self)
            try:
                reply = await answer(call, line.id, line.method, line.params, _REPLY_BYTES_MAX)
            finally:
                if lends:
                    self._lent[number] -= 1
                    if not self._lent[number]:
                        del self._lent[number]
        except asyncio.CancelledError:
            reply = protocol.error_line(line.id, protocol.GENERAL, "the execute that asks was cancelled")
        await self._reply(endpoint, reply, instance)

    def _refuse(self, endpoint: Endpoint, request_id: int | str, instance: str, why: str) -> None:
        self._soon(self._reply(endpoint, protocol.error_line(request_id, protocol.GENERAL, why), instance))

    async def _reply(self, endpoint: Endpoint, reply: bytes, instance: str) -> None:
        """Bring an answer to the server. To bring it twice does no harm: the second is for nobody."""
        for _ in range(ANSWER_TRIES):
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await endpoint.tell(reply, instance)
                return
            except NotProtocolError as error:
                log.debug("the server did not take an answer", plugin=self._plugin, error=str(error))
                return
            except (LostError, TimeoutError) as error:
                log.debug("an answer did not arrive", plugin=self._plugin, error=str(error))

    def _soon(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._minor.add(task)
        task.add_done_callback(self._minor.discard)

    # --- questions about the server itself ------------------------------------------------------------------------

    async def _ask(
        self, endpoint: Endpoint, method: str, params: Mapping[str, Any], instance: str = ""
    ) -> protocol.Line:
        """Ask and wait. The caller limits the time. Raises: LostError, NotProtocolError, _RefusedError."""
        self._last_id += 1
        body = protocol.line_of(protocol.Request(f"{self._id_prefix}-q{self._last_id}", method, params))
        async with aclosing(endpoint.exchange(body, instance)) as messages:
            async for reply, _ in messages:
                if reply.error is not UNSET:
                    self._redact(reply.error)
                    text = f"answered `{method}` with error {reply.error.code}: {reply.error.message[:500]}"
                    raise _RefusedError(text)
                return reply
        raise LostError("it closed the connection without an answer")


class _RefusedError(Exception):
    """The server answered a question about itself with an error, or with nonsense."""


_PROXY_STATUSES = (502, 503, 504)
"""What something between us and the server says when there is none."""
