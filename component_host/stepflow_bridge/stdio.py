"""One StepFlow server on stdio, through all its restarts: the handshake, the executes in flight, its call-backs.

What a server is, it is asked (`_probe`): an execute of a component that does not exist, once without the member that
0.7.0 began to require and once without the one that 0.4.0 began to require. Servers do not answer requests that lack
what they require, so an answer tells the generation: how long a line may be, and whether call-backs carry span ids.
That holds behind any launcher, unlike a look at installed packages. Servers with our SDK announce what they can do.

Promises:
- A line is never longer than the server can read (it would crash): such a call fails with INVALID_INPUT unsent.
- Each call-back is answered exactly once, also after the call that made it has ended.
- Where the protocol does not tell which execute makes a call-back, there is one execute at a time; only while it waits
  for a call-back, calls of the flow that it asked for may come on top of it (`takes`), and then the newest one asks.
- When the process ends, its calls in flight fail with UNREACHABLE.

Not here: which server gets a call, and when a process is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, Struct

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.callbacks import answer
from component_host.stepflow_bridge.pool import NO_ROOM
from component_host.supervision.process import ServerProcess
from component_host.supervision.spec import ProcessSpec
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Code, Failure, Unavailable
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from component_host.backend import BackendContext, ComponentInfo, HostCall

log = get_logger("component_host.stepflow")

LINE_BYTES_OLD = 64 * 1024
"""What 0.2.1 to 0.3.0 read; they crash on a longer line."""

LINE_BYTES_0_4 = 512 * 1024
"""What 0.4.0 to 0.7.0 read."""

LINE_BYTES_OWN = PAYLOAD_BYTES_MAX + 1024 * 1024
"""For servers with our SDK that announce no limit: any payload, and its envelope."""

REPLY_BYTES_MAX = PAYLOAD_BYTES_MAX + 1024 * 1024
"""A longer line from a server is not kept; the call that it answers fails."""

OUTGOING_BYTES_MAX = 64 * 1024 * 1024
"""Sent, but not yet read by the server. At least one line of the largest size fits."""

CALLBACKS_MAX = 1_000
"""Requests of one process that are being served."""

NOISE_CHARS_MAX = 200

assert OUTGOING_BYTES_MAX > LINE_BYTES_OWN
assert LINE_BYTES_OWN > PAYLOAD_BYTES_MAX

_PROBE_COMPONENT = "/stepflow-mesh/does-not-exist"


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioServerConfig:
    """How to start a server and what to expect of it. Substitution in `args` and `env` is done."""

    command: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    inherit_env: bool = False
    processes: int = 1
    concurrency: int | None = None
    """Executes at a time in each process; None: one where call-backs cannot be attributed, else without limit."""
    line_bytes_max: int | None = None
    """Longest line that the server reads; None: as it announces or as its generation has it."""
    start_timeout_s: float = 30.0
    request_timeout_s: float = 30.0
    """For questions about the server itself; calls have their own timeouts."""
    stop_grace_s: float = 2.0


class StdioServer:
    """A server and what is said with its present process. `on_room` is called whenever it may take another execute."""

    def __init__(
        self, context: BackendContext, config: StdioServerConfig, on_room: Callable[[StdioServer], None]
    ) -> None:
        self.components: list[ComponentInfo] = []
        self.lists_all = True
        self.room = NO_ROOM
        """How many executes more it may get now."""
        self.stopping = False
        self.exit_reason = ""
        self._on_room = on_room
        self._config = config
        self._spec = ProcessSpec.of(context, config, stderr_hidden=protocol.ECHOES)
        self._spans = protocol.SpanIds(secrets.randbits(63))
        self._last_id = 0
        self._executes: dict[int, HostCall | None] = {}
        """In flight by request id; None for one that was abandoned and still runs in the server."""
        self._questions: dict[str, asyncio.Future[protocol.Line]] = {}
        self._callbacks: dict[asyncio.Task[None], int] = {}
        """Being served, with the execute each belongs to."""
        self._process: ServerProcess | None = None
        self._partial: list[bytes] = []
        self._partial_bytes = 0
        self._first_noise = ""
        self._line_bytes_max = LINE_BYTES_OLD
        self._concurrency = 1.0
        self._attributes = False
        """Whether call-backs say which execute they belong to."""
        self._cancels = False
        self._check: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start a process and shake hands with it. Raises as `StepflowStdioBackend.start`; then
        nothing is left of it."""
        self._partial, self._partial_bytes, self._first_noise = [], 0, ""
        self.stopping = False
        self._process = process = ServerProcess(self._spec, on_output=self._read, on_exit=self._handle_exit)
        process.start()
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                await self._shake_hands(process)
        except TimeoutError:
            await self._give_up(process)
            raise self._start_error(
                "SERVER_NOT_RESPONDING",
                f"did not answer the handshake within {self._config.start_timeout_s:g} s",
            ) from None
        except _ServerEndedError:
            await self._give_up(process)
            raise self._start_error("SERVER_EXITED", f"{process.exit_text()} before it was ready") from None
        except _RefusedError as error:
            await self._give_up(process)
            raise self._start_error("SERVER_REFUSED", str(error)) from None
        except BaseException:
            await self._give_up(process)
            raise
        self.room = self._concurrency

    async def stop(self) -> None:
        """End the process; calls in flight fail. Safe to repeat."""
        self.room = NO_ROOM
        if self._check is not None:
            self._check.cancel()
        if self._process is not None:
            await self._process.stop(self._config.stop_grace_s)
        for task in list(self._callbacks):
            task.cancel()
        await asyncio.gather(*self._callbacks, return_exceptions=True)

    @property
    def in_flight(self) -> int:
        """How many executes it has, abandoned ones included."""
        return len(self._executes)

    @property
    def process_id(self) -> int:
        return 0 if self._process is None else self._process.pid

    def stderr_tail(self) -> str:
        return "" if self._process is None else self._process.stderr_tail()

    async def ended(self) -> None:
        assert self._process is not None
        await self._process.ended()

    def _end(self, process: ServerProcess) -> None:
        """Kill the present process; from this moment on, calls wait for the next one."""
        if process is self._process:
            self.room = NO_ROOM
        process.kill()

    async def _give_up(self, process: ServerProcess) -> None:
        await process.stop(0.0)

    async def _shake_hands(self, process: ServerProcess) -> None:
        reply = await self._ask("initialize", protocol.initialize_params(self._spec.plugin))
        capabilities = protocol.capabilities_of(reply)
        process.make_output_blocking()
        process.write(protocol.line_of(protocol.Notification("initialized", {})))
        probes = [] if capabilities is not None else self._probe()
        reply = await self._ask("components/list", {})
        try:
            self.components = protocol.listing_of(reply)
        except protocol.DECODE_ERRORS as error:
            raise _RefusedError(f"sent a list of components that is none: {error}") from None
        if capabilities is not None:
            self._cancels = capabilities.cancel
            self._expect(attributes=True, line_bytes_max=capabilities.line_bytes_max or LINE_BYTES_OWN)
        else:
            self._cancels = False
            self._expect_of(probes)
            process.forget_stderr()  # its complaints about the probes, written before it answered
        log.debug(
            "server ready",
            plugin=self._spec.plugin,
            components=len(self.components),
            line_bytes_max=self._line_bytes_max,
            concurrency=self._concurrency,
        )

    def _probe(self) -> list[asyncio.Future[protocol.Line]]:
        """Ask what only older generations answer: without ids (before 0.7.0), and without attempt (before 0.4.0).

        stepflow-py answers in order, so what comes at all comes before the reply to the next request. Should another
        server answer later, that is still heeded.
        """
        known = {"component": _PROBE_COMPONENT, "input": None, "step_id": "", "run_id": "", "flow_id": ""}
        probes = [
            self._question("components/execute", {**known, "attempt": 1}),
            self._question("components/execute", {**known, "observability": {}}),
        ]
        for probe in probes:
            probe.add_done_callback(lambda _: self._expect_of(probes))
        return probes

    def _expect_of(self, probes: list[asyncio.Future[protocol.Line]]) -> None:
        ids_required, attempt_required = (not probe.done() for probe in probes)
        self._expect(
            attributes=ids_required and attempt_required,
            line_bytes_max=LINE_BYTES_0_4 if attempt_required else LINE_BYTES_OLD,
        )

    def _expect(self, *, attributes: bool, line_bytes_max: int) -> None:
        """Set what follows from the server's generation, unless the configuration says otherwise."""
        self._line_bytes_max = self._config.line_bytes_max or line_bytes_max
        self._attributes = attributes
        self._concurrency = float(self._config.concurrency or ("inf" if attributes else 1))
        if self.room != NO_ROOM:
            self.room = self._concurrency - len(self._executes)

    def _handle_exit(self) -> None:
        process = self._process
        assert process is not None
        self.room = NO_ROOM
        self.exit_reason = process.exit_text()
        for question in self._questions.values():
            if not question.done():
                question.set_exception(_ServerEndedError())
                question.exception()  # whoever asked may be gone already
        self._questions.clear()
        for task in list(self._callbacks):
            task.cancel()
        executes, self._executes = self._executes, {}
        failure = process.loss()
        for call in executes.values():
            if call is not None:
                call.fail(failure)

    def _start_error(self, reason: str, what: str) -> Unavailable:
        assert self._process is not None
        noise = self._first_noise
        return self._process.start_error(
            reason, what, f"; its stdout begins with {noise!r}, which is not the StepFlow protocol" if noise else ""
        )

    # --- calls --------------------------------------------------------------------------------------------------

    def takes(self, call: HostCall) -> bool:
        """Whether a call may be sent now: there is room, or the newest execute waits for a flow that makes this call.

        Else the flow would wait for a place that is held by whoever waits for the flow.
        """
        if self.room > 0:
            return True
        if self.room == NO_ROOM or not self._executes:
            return False
        newest, waiting = next(reversed(self._executes.items()))
        return waiting is not None and newest in self._callbacks.values() and _descends(call, waiting)

    def send(self, call: HostCall) -> None:
        """Send an execute. Only one that it `takes`."""
        process = self._process
        assert process is not None
        request_id = self._last_id = self._last_id + 1
        line = protocol.execute_line(call, request_id, self._spans)
        if len(line) - 1 > self._line_bytes_max:
            call.fail(self._too_long(len(line) - 1))
            return
        if process.outgoing_bytes + len(line) > OUTGOING_BYTES_MAX:
            call.fail(
                Failure(Code.RESOURCE_UNAVAILABLE, f"server {self._spec.plugin!r} does not read what it was sent")
            )
            return
        call.backend_state = (self, request_id)
        self._executes[request_id] = call
        self.room -= 1
        process.write(line)

    def abandon(self, request_id: int) -> None:
        """Stop an execute if the server can, and forget its call."""
        if self._executes.get(request_id) is None:
            return
        self._executes[request_id] = None  # it keeps its place until the server answers
        for task, owner in list(self._callbacks.items()):
            if owner == request_id:
                task.cancel()
        process = self._process
        assert process is not None
        if self._cancels:
            process.write(protocol.line_of(protocol.Notification("components/cancel", {"id": request_id})))
        elif self.room < 1 and all(call is None for call in self._executes.values()):
            # Nothing but abandoned work, no room for more, and no word to stop it: a new process is the only way on.
            self.stopping = True
            self._end(process)
        elif self._check is None or self._check.done():
            self._check = asyncio.create_task(self._check_alive(process), name=f"check {self._spec.plugin}")

    async def _check_alive(self, process: ServerProcess) -> None:
        """End a process that has stopped answering: code that blocks its event loop blocks all its calls."""
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await self._ask("components/list", {})
        except TimeoutError:
            log.warning("server does not answer; ending it", plugin=self._spec.plugin)
            self._end(process)
        except (_ServerEndedError, _RefusedError):
            return

    def _too_long(self, size: int) -> Failure:
        return Failure(
            Code.INVALID_INPUT,
            f"the request is {size:,} bytes and server {self._spec.plugin!r} reads lines of at most "
            f"{self._line_bytes_max:,}; pass large values through a blob (put_blob, get_blob)",
        )

    def _settle(self, request_id: int, line: protocol.Line) -> None:
        call = self._executes.pop(request_id, _UNKNOWN)
        if call is _UNKNOWN:
            return
        self.room += 1
        if call is not None:
            protocol.settle(call, line, self._spec.plugin)
        self._on_room(self)

    # --- questions about the server itself ------------------------------------------------------------------------

    async def _ask(self, method: str, params: dict[str, Any]) -> protocol.Line:
        """Ask and wait. The caller limits the time. Raises: _ServerEndedError, _RefusedError."""
        reply = await self._question(method, params)
        if reply.error is not UNSET:
            raise _RefusedError(f"answered `{method}` with error {reply.error.code}: {reply.error.message[:500]}")
        return reply

    def _question(self, method: str, params: dict[str, Any]) -> asyncio.Future[protocol.Line]:
        process = self._process
        assert process is not None
        self._last_id += 1
        question_id = f"q{self._last_id}"
        future: asyncio.Future[protocol.Line] = asyncio.get_running_loop().create_future()
        if process.returncode is not None:
            future.set_exception(_ServerEndedError())
        else:
            self._questions[question_id] = future
            process.write(protocol.line_of(protocol.Request(question_id, method, params)))
        return future

    # --- what comes in --------------------------------------------------------------------------------------------

    def _read(self, chunk: bytes) -> None:
        end = chunk.rfind(b"\n")
        if end < 0:
            self._keep_partial(chunk)
            return
        text = chunk[:end]
        if self._partial:
            self._partial.append(text)
            text = b"".join(self._partial)
            self._partial.clear()
            if self._partial_bytes > REPLY_BYTES_MAX:
                text = self._without_too_long(text)
            self._partial_bytes = 0
        if end + 1 < len(chunk):
            self._keep_partial(chunk[end + 1 :])
        lines, noise = protocol.decode_lines(text)
        for line in lines:
            if line.jsonrpc == "2.0":
                self._handle(line)
        if noise:
            self._note_noise(noise)

    def _keep_partial(self, chunk: bytes) -> None:
        self._partial_bytes += len(chunk)
        if self._partial_bytes <= REPLY_BYTES_MAX:
            self._partial.append(chunk)
        elif len(self._partial) > 1:
            del self._partial[1:]  # the head tells whose reply it would have been

    def _without_too_long(self, text: bytes) -> bytes:
        """Fail the call whose reply outgrew the limit; return the whole lines behind that reply."""
        request_id = protocol.id_in_head(text[:256])
        if request_id is not None:
            message = f"the result is larger than the limit of {PAYLOAD_BYTES_MAX:,} bytes"
            call = self._executes.get(request_id)
            if call is not None:
                call.fail(Failure(Code.COMPONENT_FAILED, message))
            self._settle(request_id, protocol.Line())
        return text.partition(b"\n")[2]

    def _handle(self, line: protocol.Line) -> None:
        request_id = line.id
        if line.method is not None:
            if request_id is not None:
                self._serve(request_id, line.method, line)
            elif line.method == "components/progress" and line.params is not UNSET:
                self._note_progress(line.params)
        elif type(request_id) is int:
            self._settle(request_id, line)
        elif isinstance(request_id, str):
            question = self._questions.pop(request_id, None)  # 0.2.1 answers a notification: nobody asked
            if question is not None and not question.done():
                question.set_result(line)

    def _note_progress(self, params: Raw) -> None:
        with contextlib.suppress(*protocol.DECODE_ERRORS):
            progress = protocol.decode_progress(params)
            call = self._executes.get(progress.id) if isinstance(progress.id, int) else None
            if call is not None:
                call.progress(progress.done or 0.0, progress.total or 0.0, progress.message or "")

    def _note_noise(self, noise: Sequence[bytes]) -> None:
        if not self._first_noise:
            self._first_noise = noise[0][:NOISE_CHARS_MAX].decode("utf-8", "replace")
        log.debug("stdout has lines that are no messages", plugin=self._spec.plugin, lines=len(noise))

    # --- call-backs -------------------------------------------------------------------------------------------------

    def _serve(self, request_id: int | str, method: str, line: protocol.Line) -> None:
        process = self._process
        assert process is not None
        if process.outgoing_bytes > 2 * OUTGOING_BYTES_MAX:
            self._end(process)  # it asks and asks, and reads no answer
        owner = self._owner(line)
        call = None if owner is None else self._executes.get(owner)
        if owner is None:
            text = "several executes are in flight and the request does not say which one asks (set `concurrency: 1`)"
            process.write(protocol.error_line(request_id, protocol.GENERAL, text))
        elif call is None:
            text = "the execute that asks has ended"
            process.write(protocol.error_line(request_id, protocol.GENERAL, text))
        elif len(self._callbacks) >= CALLBACKS_MAX:
            text = f"{CALLBACKS_MAX} requests of this server are being served already"
            process.write(protocol.error_line(request_id, protocol.GENERAL, text))
        else:
            task = asyncio.create_task(self._answer(process, call, request_id, method, line))
            self._callbacks[task] = owner
            task.add_done_callback(self._callbacks.pop)
            self._on_room(self)  # the calls of a flow that was begun before may come now

    async def _answer(
        self, process: ServerProcess, call: HostCall, request_id: int | str, method: str, line: protocol.Line
    ) -> None:
        try:
            reply = await answer(call, request_id, method, line.params, self._line_bytes_max)
        except asyncio.CancelledError:
            process.write(protocol.error_line(request_id, protocol.GENERAL, "the execute that asks was cancelled"))
            raise
        if process.outgoing_bytes + len(reply) > OUTGOING_BYTES_MAX:
            reply = protocol.error_line(request_id, protocol.GENERAL, "the server does not read what it was sent")
        process.write(reply)

    def _owner(self, line: protocol.Line) -> int | None:
        """Find the execute that a call-back belongs to: by its ids, or because there is only one.

        It may have ended. None when nobody can tell.
        """
        ids = _ids_of(line)
        owner = None if ids is None else self._spans.request_id(ids.trace_id, ids.span_id)
        if owner is not None:
            return owner
        if len(self._executes) == 1 or (not self._attributes and self._stacked()):
            return next(reversed(self._executes), None)
        if ids is None:  # not what its generation does: from here on, one execute at a time
            self._expect(attributes=False, line_bytes_max=self._line_bytes_max)
            return None
        # A server that exports traces, in a run that is traced: the span is the server's, the trace the client's.
        alike = [
            request_id
            for request_id, call in self._executes.items()
            if call is not None and call.request.run_id == ids.run_id and call.request.step_id == ids.step_id
        ]
        return alike[0] if len(alike) == 1 else None

    def _stacked(self) -> bool:
        """Whether each execute was made by a flow that the one before it waits for."""
        return all(
            below is not None and above is not None and _descends(above, below)
            for below, above in pairwise(self._executes.values())
        )


def _descends(call: HostCall, from_: HostCall) -> bool:
    """Whether a call was made by a flow that another call has asked for, however deep: keys are nested."""
    return call.request.key.startswith(f"{from_.request.key}/")


class _ServerEndedError(Exception):
    """The process ended while something was asked of it."""


class _RefusedError(Exception):
    """The server answered a question about itself with an error, or with nonsense."""


class _Ids(Struct):
    trace_id: str | None = None
    span_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None


class _CallbackIds(Struct):
    observability: _Ids | None = None


_decode_ids = msgspec.json.Decoder(_CallbackIds).decode


def _ids_of(line: protocol.Line) -> _Ids | None:
    if line.params is UNSET:
        return None
    try:
        return _decode_ids(line.params).observability
    except protocol.DECODE_ERRORS:
        return None


_UNKNOWN: Any = object()
