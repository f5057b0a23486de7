"""Call-backs: components that start sub-runs, ask for their reports, and read flows while their call is in flight.

- A journaled entry opens a sub-run; the call-back is answered only after the entry is durable.
- A call-back may wait for the end of its sub-run. Waiting is not journaled: after a take-over the host asks again.
- A failed call-back is answered with the error; only a defect gives the run back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from executor.effects import AnswerCallback
from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, Json
from stepflow.errors import Code, Failure, Invalid, NotFound, StepflowError
from stepflow.flow import InputValidator
from stepflow.flow.values import Part, Stored, flat
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run import RunState, Scope, start_callback
from stepflow.run.entries import flow_result
from stepflow.run.subruns import callback_plan

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from executor.blobs import RunBlobs
    from executor.hosts.peer import HostPeer
    from executor.values import PartitionValues
    from stepflow.run import StepRun


class CallbackPartition(Protocol):
    """The side of a partition that call-backs use."""

    run_id: str
    state: RunState
    record: state_pb2.RunRecord
    values: PartitionValues
    gone: bool
    closing: bool

    def now_ms(self) -> int: ...
    def feed(self, entry: pb.Entry) -> None: ...
    def turn(self) -> None: ...
    def queue_effect(self, effect: AnswerCallback) -> None: ...


class RunCallbacks:
    """The call-backs of a partition."""

    __slots__ = ("_blobs", "_opening", "_partition", "_waiting")

    def __init__(self, partition: CallbackPartition, blobs: RunBlobs) -> None:
        self._partition = partition
        self._blobs = blobs
        self._waiting: dict[int, list[AnswerCallback]] = {}
        """Call-backs that wait for a sub-run to end, by the number of its scope."""
        self._opening: dict[int, tuple[HostPeer, int, bool]] = {}
        """Call-backs whose sub-run is not open yet, by the future number of its scope: host, call-back id, and
        whether to wait for the end."""

    async def answer(self, peer: HostPeer, step: StepRun, callback: host_pb2.Callback) -> None:
        """Serve a call-back of a step's component; errors go to the component."""
        try:
            kind = callback.WhichOneof("request")
            if kind == "start_run":
                await self._start_run(peer, step, callback)
            elif kind == "get_run":
                self._get_run(peer, callback)
            else:
                await self._get_flow(peer, callback)
        except StepflowError as error:
            reply = host_pb2.CallbackReply(callback_id=callback.callback_id)
            reply.error.reason, reply.error.message = error.reason, error.message
            reply.error.not_found = isinstance(error, NotFound)
            peer.reply(reply)

    def answer_opened(self) -> None:
        """Answer the call-backs whose sub-run is open now, or queue the answer for the end of the sub-run."""
        if not self._opening:
            return
        scopes = self._partition.state.scopes
        for number in [number for number in self._opening if number < len(scopes)]:
            peer, callback_id, wait = self._opening.pop(number)
            self._answer_when(AnswerCallback(peer, callback_id, scopes[number]), wait=wait)

    def take_waiting(self, scope: Scope) -> list[AnswerCallback]:
        """Remove and return the answers queued for the end of a sub-run."""
        return self._waiting.pop(scope.number, [])

    async def _start_run(self, peer: HostPeer, step: StepRun, callback: host_pb2.Callback) -> None:
        request = callback.start_run
        partition = self._partition

        # 1. Fetch and check the flow and its inputs.
        document = await self._payload(request.flow, shared=True)
        inputs = await self._payload(request.inputs, shared=False)
        plan = callback_plan(document, request.overrides_json)
        unchecked = partition.record.policy.input_unchecked
        _check_inputs(None if unchecked else InputValidator.for_input(plan.flow), inputs)

        # 2. Move large payloads to the blob store: the entry that opens the sub-run must be small.
        fetched = {p.blob: text for p, text in ((request.flow, document), (request.inputs, inputs)) if p.blob}
        for payload, text in ((request.flow, document), (request.inputs, inputs)):
            if not payload.blob and len(text) > INLINE_BYTES_MAX:
                payload.blob = await self._blobs.put_blob(partition.run_id, text)
                payload.blob_bytes = len(text)
                fetched[payload.blob] = text

        # 3. Open the sub-run, or find the one that an earlier attempt has opened. From here on nothing awaits.
        if partition.gone or partition.closing:
            return  # the call ends with the run, and its call-backs with it
        started = start_callback(partition.state, step, request, partition.now_ms())
        if not isinstance(started, pb.Entry):
            self._answer_when(AnswerCallback(peer, callback.callback_id, started), wait=request.wait)
            return
        number = len(partition.state.scopes) + len(partition.state.unopened)
        self._opening[number] = (peer, callback.callback_id, request.wait)
        partition.values.keep(fetched)  # after the last await: any earlier turn would have dropped them
        partition.feed(started)
        partition.turn()

    def _get_run(self, peer: HostPeer, callback: host_pb2.Callback) -> None:
        run_id = callback.get_run.run_id
        for scope in self._partition.state.scopes:
            if scope.run_id == run_id:
                self._answer_when(AnswerCallback(peer, callback.callback_id, scope), wait=callback.get_run.wait)
                return
        raise NotFound("RUN_NOT_FOUND", f"run {run_id} is not part of this run's tree")

    async def _get_flow(self, peer: HostPeer, callback: host_pb2.Callback) -> None:
        flow_id = callback.get_flow.flow_id
        flow = await self._blobs.get_blob(self._partition.run_id, flow_id, shared=True)
        if flow is None:
            raise NotFound("FLOW_NOT_FOUND", f"there is no flow {flow_id}")
        peer.reply(host_pb2.CallbackReply(callback_id=callback.callback_id, flow_json=flow))

    def _answer_when(self, answer: AnswerCallback, *, wait: bool) -> None:
        if wait and not answer.scope.ended:
            self._waiting.setdefault(answer.scope.number, []).append(answer)
        else:
            self._partition.queue_effect(answer)

    async def _payload(self, payload: pb.Payload, *, shared: bool) -> bytes:
        if not payload.blob:
            return payload.json
        content = await self._blobs.get_blob(self._partition.run_id, payload.blob, shared=shared)
        if content is None:
            raise NotFound("BLOB_NOT_FOUND", f"there is no blob {payload.blob}")
        return content


def _check_inputs(validator: InputValidator | None, inputs: bytes) -> None:
    """Raises: Invalid INPUT_INVALID."""
    if validator is None:
        return
    problem = validator.first_misfit(map(bytes, msgspec.json.decode(inputs, type=list[msgspec.Raw])))
    if problem is not None:
        number, pointer, message = problem
        raise Invalid("INPUT_INVALID", f"input {number} does not fit the flow's schema at {pointer or '/'}: {message}")


REPORT_INLINE_BYTES_MAX = 4 * 1024 * 1024
"""Results of one report that travel in its frame; of 100,000 small results, the rest goes to the blob store, too."""


def send_report(answer: AnswerCallback, run_id: str, blobs: RunBlobs) -> Coroutine[object, object, None]:
    """Return the work of answering a call-back with the report of its sub-run.

    Large results go to blobs of the run `run_id`.
    """
    scope = answer.scope
    # Now, not in the work: the run may end, and its state go, before the work begins.
    outcomes = [scope.items[index].outcome if index < len(scope.items) else None for index in range(len(scope.inputs))]
    report = host_pb2.RunReport(
        run_id=scope.run_id,
        flow_name=scope.plan.flow.name or "",
        status=_scope_status(scope),
        created_at_ms=scope.created_at_ms,
        completed_at_ms=scope.ended_at_ms,
    )

    return _send_report(answer, report, outcomes, run_id, blobs)


async def _send_report(
    answer: AnswerCallback,
    report: host_pb2.RunReport,
    outcomes: list[Json | Failure | None],
    run_id: str,
    blobs: RunBlobs,
) -> None:
    inline_bytes = 0
    for outcome in outcomes:
        item = report.items.add(status=pb.RUN_STATUS_RUNNING)
        if outcome is None:
            continue

        item.status = pb.RUN_STATUS_FAILED if isinstance(outcome, Failure) else pb.RUN_STATUS_COMPLETED
        text = await _result_text(outcome, run_id, blobs)
        if len(text) > min(INLINE_BYTES_MAX, REPORT_INLINE_BYTES_MAX - inline_bytes):
            item.flow_result.blob = await blobs.put_blob(run_id, text)
            item.flow_result.blob_bytes = len(text)
        else:
            item.flow_result.json = text
            inline_bytes += len(text)

    answer.peer.reply(host_pb2.CallbackReply(callback_id=answer.callback_id, report=report))


async def _result_text(outcome: Json | Failure, run_id: str, blobs: RunBlobs) -> bytes:
    """Return the FlowResult of an item as JSON text; that of a result too large for a component is a failure."""
    if isinstance(outcome, Failure) or outcome.__class__ is Json:
        return flow_result(outcome)
    if outcome.size > PAYLOAD_BYTES_MAX:
        problem = f"the result is {outcome.size:,} bytes; the limit for components is {PAYLOAD_BYTES_MAX:,}"
        return flow_result(Failure(Code.COMPONENT_FAILED, problem))

    texts: list[bytes] = []
    for piece in flat(outcome):
        source = piece.source if isinstance(piece, Part) else piece
        if isinstance(source, Stored) and not source.loaded:
            content = await blobs.get_blob(run_id, source.blob, shared=False)
            if content is None:
                return flow_result(Failure(Code.ORCHESTRATOR_ERROR, f"a value of this run is gone: {source.blob}"))
            texts.append(content[piece.offset : piece.offset + piece.size] if isinstance(piece, Part) else content)
        else:
            texts.append(piece if isinstance(piece, bytes) else piece.raw)
    return flow_result(Json(b"".join(texts)))


def _scope_status(scope: Scope) -> pb.RunStatus:
    """Return FAILED for a sub-run with a failed step, also if its items have results."""
    if not scope.ended:
        return pb.RUN_STATUS_RUNNING
    return pb.RUN_STATUS_FAILED if any(item.step_failed for item in scope.items) else pb.RUN_STATUS_COMPLETED


__all__ = ["RunCallbacks", "send_report"]
