"""One StepFlow server on stdio, through all its restarts.

Promises:
- A line is never longer than the server can read (a longer line crashes it): such a call fails with INVALID_INPUT,
  unsent.
- While the server does not read what it was sent, further calls wait in the pool. It is ended after `UNREAD_S_MAX`.
- At the end of the process, its calls in flight fail with UNREACHABLE.

The parts: the handshake (`handshake`), the bytes (`reader`), requests about the server (`questions`), executes in
flight (`executes`), call-backs (`callbacks`). Not here: the choice of a server for a call, and the time of a restart.
"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import TYPE_CHECKING

from msgspec import UNSET

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.stdio.callbacks import FLOOD_BYTES_MAX, StdioCallbacks
from component_host.stepflow_bridge.stdio.executes import StdioExecutes
from component_host.stepflow_bridge.stdio.handshake import LINE_BYTES_OWN, ServerTraits, shake_hands
from component_host.stepflow_bridge.stdio.questions import Questions, ServerEndedError
from component_host.stepflow_bridge.stdio.reader import StdoutReader
from component_host.supervision.pipes import OUTGOING_BYTES_MAX
from component_host.supervision.process import ServerProcess
from component_host.supervision.spec import ProcessSpec
from stepflow.errors import Code, Failure, Unavailable
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from component_host.backend import BackendContext, ComponentInfo, HostCall
    from component_host.stepflow_bridge.retirement import AbandonedExecutes
    from component_host.stepflow_bridge.stdio.config import StdioServerConfig

log = get_logger("component_host.stepflow")

assert FLOOD_BYTES_MAX > OUTGOING_BYTES_MAX + LINE_BYTES_OWN


class StepflowStdioServer:
    """A server and the conversation with its present process. Implements `pool.StepflowServer`.

    `on_room` is called whenever another execute may be sent.
    """

    def __init__(
        self, context: BackendContext, config: StdioServerConfig, on_room: Callable[[StepflowStdioServer], None]
    ) -> None:
        self.components: list[ComponentInfo] = []
        self.lists_all = True
        self.stopping = False
        self.exit_reason = ""

        self._config = config
        self._spec = ProcessSpec.of(context, config, stderr_hidden=protocol.ECHOES)
        self._plugin = context.name
        self._spans = protocol.SpanIds(secrets.randbits(63))
        self._last_id = 0
        self._traits = ServerTraits()
        self._process: ServerProcess | None = None

        self._questions = Questions()
        self._fill = fill = partial(on_room, self)
        self._executes = StdioExecutes(self._plugin, self._spans, config.concurrency, fill)
        self._callbacks = StdioCallbacks(self._executes, fill, self._kill)
        self._check: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start a process and shake hands. Raises as `StepflowPool.start`; then no process is left."""
        self.stopping = False
        reader = StdoutReader(self._plugin, self._handle_line, self._executes.fail_oversized)
        on_exit = partial(self._handle_exit, reader)
        self._process = process = ServerProcess(self._spec, on_output=reader.feed, on_exit=on_exit, on_room=self._fill)
        process.start()

        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                self.components = await shake_hands(process, self._questions, self._plugin, self._set_traits)
        except BaseException as error:
            await process.stop(0.0)
            start_error = self._start_error(process, reader, error)
            if start_error is None:
                raise
            raise start_error from None

        log.debug(
            "server ready",
            plugin=self._plugin,
            components=len(self.components),
            line_bytes_max=self._callbacks.line_bytes_max,
            concurrency=self._executes.concurrency,
        )
        self._executes.open_slots()

    def _start_error(self, process: ServerProcess, reader: StdoutReader, error: BaseException) -> Unavailable | None:
        """Return the start error for users; None for an exception outside the handshake."""
        if isinstance(error, TimeoutError):
            reason = "SERVER_NOT_RESPONDING"
            text = f"did not answer the handshake within {self._config.start_timeout_s:g} s"
        elif isinstance(error, ServerEndedError):
            reason, text = "SERVER_EXITED", f"{process.exit_text()} before it was ready"
        elif isinstance(error, protocol.ServerRefusedError):
            reason, text = "SERVER_REFUSED", str(error)
        else:
            return None
        noise = reader.first_noise
        hint = f"; its stdout begins with {noise!r}, which is not the StepFlow protocol" if noise else ""
        return process.start_error(reason, text, hint)

    def _set_traits(self, traits: ServerTraits) -> None:
        self._traits = traits
        self._callbacks.line_bytes_max = self._config.line_bytes_max or traits.line_bytes_max
        self._executes.set_attributed(traits.attributed)

    async def stop(self) -> None:
        """End the process; calls in flight fail. Idempotent."""
        self._executes.close_slots()
        if self._check is not None:
            self._check.cancel()
        if self._process is not None:
            await self._process.stop(self._config.stop_grace_s)
        await self._callbacks.stop()

    async def ended(self) -> None:
        assert self._process is not None
        await self._process.ended()

    @property
    def process_id(self) -> int:
        return 0 if self._process is None else self._process.pid

    def stderr_tail(self) -> str:
        return "" if self._process is None else self._process.stderr_tail()

    def _kill(self, process: ServerProcess) -> None:
        """Kill a process; calls wait for the next process from here on."""
        if process is self._process:
            self._executes.close_slots()
        process.kill()

    def _handle_exit(self, reader: StdoutReader) -> None:
        process = self._process
        assert process is not None
        reader.close()
        self._executes.close_slots()
        self.exit_reason = process.exit_text()
        self._questions.fail_questions()
        self._callbacks.cancel_callbacks()
        self._executes.fail_calls(process.loss())

    def _handle_line(self, line: protocol.Line) -> None:
        process, request_id = self._process, line.id
        assert process is not None

        if line.method is not None and not line.is_reply:
            if request_id is not None:
                self._callbacks.serve_callback(process, request_id, line.method, line)
            elif line.params is UNSET:
                return
            elif line.method == protocol.PROGRESS:
                self._executes.report_progress(line.params)
            elif line.method == protocol.LOG:
                self._executes.take_log(line.params)
            elif line.method in (protocol.QUEUED, protocol.BEGUN):
                self._executes.note_queue(line.params, begun=line.method == protocol.BEGUN)
        elif type(request_id) is int:
            self._executes.settle_call(request_id, line, process)
        elif isinstance(request_id, str):
            if request_id.isdecimal() and len(request_id) < 19:  # some servers send ids back as text
                self._executes.settle_call(int(request_id), line, process)
            else:
                self._questions.take_reply(request_id, line)

    # --- calls --------------------------------------------------------------------------------------------------

    @property
    def room(self) -> float:
        """Number of further executes the server may get now."""
        room = self._executes.room
        if room > 0:
            assert self._process is not None
            return 0.0 if self._process.stdin.full else room
        return room

    @property
    def in_flight(self) -> int:
        """Number of executes, abandoned ones included."""
        return len(self._executes)

    @property
    def concurrency(self) -> float:
        return self._executes.concurrency

    @property
    def abandoned(self) -> AbandonedExecutes:
        return self._executes.abandoned

    @property
    def executing(self) -> bool:
        return self._executes.executing

    def retire(self) -> None:
        self._executes.close_slots()

    def end_process(self) -> None:
        assert self._process is not None
        self.stopping = True
        self._kill(self._process)

    def drop_executes(self, request_ids: Sequence[int]) -> None:  # noqa: ARG002  # it has none
        raise AssertionError("a stdio server is never remote")

    def takes_call(self, call: HostCall) -> bool:
        if not self._executes.takes_call(call, self._callbacks.asking):
            return False
        assert self._process is not None
        return not self._process.stdin.full

    def send_execute(self, call: HostCall) -> None:
        """Send an execute. Only a call that `takes_call` accepts."""
        process = self._process
        assert process is not None
        request_id = self._last_id = self._last_id + 1
        line = protocol.execute_line(call, request_id, self._spans)

        if len(line) - 1 > self._callbacks.line_bytes_max:
            call.fail(self._too_long(len(line) - 1))
            return

        process.serve_run(call.request.root_run_id, idle=not len(self._executes))
        call.backend_state = (self, request_id)
        self._executes.add_call(request_id, call)
        process.write(line)

    def abandon_execute(self, request_id: int) -> None:
        """Stop an execute if the server can, and forget its call."""
        if self._executes.call_of(request_id) is None:
            return
        self._executes.abandon_call(request_id)
        self._callbacks.cancel_callbacks_of(request_id)

        process = self._process
        assert process is not None
        if self._traits.cancels:
            process.write(protocol.line_of(protocol.Notification("components/cancel", {"id": request_id})))
        elif self._executes.stuck:
            # Abandoned work fills the server and the protocol cannot stop it: only a new process has room.
            self.end_process()
            return
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._check_alive(process), name=f"check {self._plugin}")

    async def _check_alive(self, process: ServerProcess) -> None:
        """Kill a process that has stopped answering: code that blocks its event loop blocks all its calls."""
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await self._questions.ask(process, "components/list", {})
        except TimeoutError:
            log.warning("server does not answer; ending it", plugin=self._plugin)
            self._kill(process)
        except (ServerEndedError, protocol.ServerRefusedError):
            return

    def _too_long(self, size: int) -> Failure:
        return Failure(
            Code.INVALID_INPUT,
            f"the request is {size:,} bytes and server {self._plugin!r} reads lines of at most "
            f"{self._callbacks.line_bytes_max:,}; pass large values through a blob (put_blob, get_blob)",
        )
