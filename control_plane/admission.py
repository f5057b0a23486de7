"""Admission: turns a submission into a run record, and in the same transaction places the run if possible.

- A run id is admitted at most once: a repeated request succeeds, a different request under the id is refused.
- A run is placed with its admission only if no run waits and an executor has room. Otherwise the run waits under
  `pending/`.
- The request is hashed before defaults are applied, so a resubmission still matches after the defaults change.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from control_plane.flow_store import check_flow
from control_plane.placement import new_status
from control_plane.run_index import entry
from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, encode
from stepflow.errors import AlreadyExists, Invalid, Overloaded
from stepflow.flow import Flow, InputValidator, apply_overrides
from stepflow.ids import new_run_id, parse_run_id
from stepflow.journal import partition_count
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.retry import backoff_to_proto
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import Compare, Get, KeyValue, Op, Put, Txn, absent, keys, present

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from control_plane.cluster import Cluster
    from control_plane.flow_store import FlowStore
    from stepflow.config import RetryConfig
    from stepflow.retry import Backoff
    from stepflow.store.blobs import BlobStore
    from stepflow.store.grouping import Grouping

ITEMS_PER_PARTITION = 64
CONCURRENCY_MAX_DEFAULT = 10
RUN_ITEMS_MAX = 100_000

ADMISSION_TRIES_MAX = 5
ADMISSION_RETRY_S = 0.05

CHECKED_ITEMS_MAX = 100
"""Items checked on the event loop. More would block it for milliseconds: they are checked in a thread."""

PENDING_RUNS_MAX = 10_000
"""Runs that wait for an executor; further submissions are refused as Overloaded."""

RECORD_INPUTS_BYTES_MAX = 256 * 1024
"""Inputs stored in the run record. Larger inputs go to the blob store, one blob per partition."""

VARIABLES_BYTES_MAX = 256 * 1024
"""Bound on the variables, on the overrides, and on the labels."""

assert INLINE_BYTES_MAX < RECORD_INPUTS_BYTES_MAX


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A submission."""

    flow: Flow | str
    """A flow, or the id of a stored one."""
    inputs: Sequence[bytes]
    """Compact JSON texts, one per item."""
    run_id: str | None = None
    """None: generate an id."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    overrides: Any = None
    concurrency_max: int | None = None
    transport_retries_max: int | None = None
    """None: the control plane's default."""
    backoff: Backoff | None = None
    """None: the control plane's default."""
    check_input: bool = True
    labels: Mapping[str, Any] = field(default_factory=dict)


class Admission:
    """Admits the submissions of a control plane."""

    def __init__(
        self,
        flows: FlowStore,
        blobs: BlobStore,
        cluster: Cluster,
        grouping: Grouping,
        retry: RetryConfig,
        on_admitted: Callable[[], None],
    ) -> None:
        """`retry`: default of requests without a retry policy. `on_admitted`: called after each admission."""
        self._flows = flows
        self._blobs = blobs
        self._cluster = cluster
        self._grouping = grouping
        self._retry = retry
        self._on_admitted = on_admitted

    async def submit(self, request: RunRequest) -> str:
        """Admit a run and return its id. See `ControlPlane.submit`."""
        # 1. Refuse a request that can never run.
        run_id = parse_run_id(request.run_id) if request.run_id else new_run_id()
        if isinstance(request.flow, Flow):
            flow, flow_id = request.flow, await self._flows.put(request.flow)
        else:
            flow, flow_id = await self._flows.get(request.flow), request.flow
        if len(request.inputs) > CHECKED_ITEMS_MAX or sum(map(len, request.inputs)) > RECORD_INPUTS_BYTES_MAX:
            await asyncio.to_thread(check_request, flow, request)
        else:
            check_request(flow, request)

        # 2. Make the record; large inputs are durable in the blob store first.
        record = await self._record(run_id, request, flow.name or "", flow_id)

        # 3. Write it, with the assignment if an executor has room.
        for _ in range(ADMISSION_TRIES_MAX):
            if await self._admit(run_id, record, flow):
                self._on_admitted()
                return run_id
            await asyncio.sleep(ADMISSION_RETRY_S)  # The chosen executor died; wait for the watch to show it.
        raise Overloaded(
            "PLACEMENT_UNSTABLE",
            f"each of {ADMISSION_TRIES_MAX} chosen executors died before it got the run; try again",
        )

    async def _admit(self, run_id: str, record: state_pb2.RunRecord, flow: Flow) -> bool:
        """Admit the run, or find it admitted; return False if the chosen executor died, or the flow was missing.

        Raises: AlreadyExists, Overloaded.
        """
        # 1. Place the run with its record, or let it wait.
        key = keys.run(run_id)
        compares: list[Compare] = [absent(key), present(keys.flow(record.flow_id))]
        writes: list[Op] = [Put(key, record.SerializeToString()), entry(run_id, record)]
        executor = self._room_for(record) if partition_count(record) == 1 else None
        if executor is not None:
            compares.append(present(keys.session_executor(executor)))
            writes.append(Put(keys.status(run_id, 0), new_status(record, 0).SerializeToString()))
            writes.append(Put(keys.assigned(executor, run_id, 0), b""))
        else:
            writes.append(Put(keys.pending(run_id), b""))

        # 2. Write, unless the id is taken, the flow is gone or the executor's session has ended.
        with self._cluster.planning(executor):
            result = await self._grouping.txn(Txn(tuple(compares), tuple(writes), (Get(key),)))
        if result.succeeded:
            return True

        # 3. Find out which of them. The flow is known here and may be gone from the store, if that was wiped.
        existing = result.responses[0]
        if not isinstance(existing, KeyValue):
            await self._flows.put(flow)
            return False
        if state_pb2.RunRecord.FromString(existing.value).request_hash == record.request_hash:
            return True
        raise AlreadyExists("RUN_EXISTS", f"run {run_id} exists, with a different request", run_id=run_id)

    def _room_for(self, record: state_pb2.RunRecord) -> str | None:
        """Choose an executor for a new run; None while other runs wait. Raises: Overloaded."""
        if not self._cluster.pending:
            return self._cluster.choose({}, engine_version=record.policy.engine_version)
        if len(self._cluster.pending) >= PENDING_RUNS_MAX:
            raise Overloaded("TOO_MANY_PENDING", f"{PENDING_RUNS_MAX:,} runs wait for an executor; try again later")
        return None

    async def _record(self, run_id: str, request: RunRequest, flow_name: str, flow_id: str) -> state_pb2.RunRecord:
        # 1. The request.
        record = state_pb2.RunRecord(
            flow_id=flow_id,
            flow_name=flow_name,
            variables_json=encode(dict(request.variables)) if request.variables else b"",
            overrides_json=b"" if request.overrides is None else encode(request.overrides),
            policy=state_pb2.Policy(
                concurrency_max=request.concurrency_max or CONCURRENCY_MAX_DEFAULT,
                input_unchecked=not request.check_input,
            ),
            items_per_partition=_partition_size(request.inputs),
            items_total=len(request.inputs),
            labels_json=encode(dict(request.labels)) if request.labels else b"",
        )

        # 2. Its hash, before the defaults below: a resubmission must match after the defaults change.
        digest = hashlib.sha256(record.SerializeToString(deterministic=True))
        digest.update(repr((request.transport_retries_max, request.backoff)).encode())
        for text in request.inputs:
            digest.update(b"%d:" % len(text) + text)
        record.request_hash = digest.hexdigest()

        # 3. The defaults.
        retries_max, backoff = request.transport_retries_max, request.backoff or self._retry.backoff
        record.policy.transport_retries_max = self._retry.transport_max_retries if retries_max is None else retries_max
        record.policy.backoff.CopyFrom(backoff_to_proto(backoff))
        record.policy.engine_version = ENGINE_VERSION
        record.created_at_ms = time.time_ns() // 1_000_000

        # 4. The inputs.
        await self._put_inputs(run_id, record, request.inputs)
        return record

    async def _put_inputs(self, run_id: str, record: state_pb2.RunRecord, inputs: Sequence[bytes]) -> None:
        size = record.items_per_partition
        if sum(map(len, inputs)) <= RECORD_INPUTS_BYTES_MAX:
            record.inputs.extend(pb.Payload(json=text) for text in inputs)
        elif any(len(text) + 2 > PAYLOAD_BYTES_MAX for text in inputs):
            for text in inputs:  # one blob each: the brackets of an array would exceed the limit of a blob
                record.inputs.add(blob=await self._blobs.put(text, scope=run_id))
        else:
            for start in range(0, len(inputs), size):
                content = b"[" + b",".join(inputs[start : start + size]) + b"]"
                record.partition_inputs.append(await self._blobs.put(content, scope=run_id))


def check_request(flow: Flow, request: RunRequest) -> None:
    """Refuse a request that can never run. `flow` is known to be valid. Raises: Invalid."""
    if request.overrides is not None:
        check_flow(apply_overrides(flow, request.overrides))
    if request.concurrency_max is not None and request.concurrency_max < 1:
        raise Invalid("CONCURRENCY_INVALID", "max concurrency must be at least 1")
    if len(request.inputs) > RUN_ITEMS_MAX:
        raise Invalid("TOO_MANY_ITEMS", f"{len(request.inputs):,} items; the limit of a run is {RUN_ITEMS_MAX:,}")

    for index, text in enumerate(request.inputs):
        if len(text) > PAYLOAD_BYTES_MAX:
            message = f"input {index} has {len(text):,} bytes; the limit is {PAYLOAD_BYTES_MAX:,}"
            raise Invalid("INPUT_TOO_LARGE", message, item=index)

    if request.variables and len(encode(dict(request.variables))) > VARIABLES_BYTES_MAX:
        raise Invalid("VARIABLES_TOO_LARGE", f"the variables are larger than {VARIABLES_BYTES_MAX:,} bytes")
    for what, tree in (("overrides", request.overrides), ("labels", dict(request.labels))):
        if tree and len(encode(tree)) > VARIABLES_BYTES_MAX:
            raise Invalid(f"{what.upper()}_TOO_LARGE", f"the {what} are larger than {VARIABLES_BYTES_MAX:,} bytes")

    validator = InputValidator.for_input(flow) if request.check_input else None
    if validator is None:
        return
    problem = validator.first_misfit(request.inputs)
    if problem is not None:
        index, pointer, message = problem
        where = f"input {index}" if len(request.inputs) > 1 else "the input"
        raise Invalid(
            "INPUT_INVALID",
            f"{where} does not fit the flow's input schema at {pointer or '/'}: {message}",
            item=index,
            pointer=pointer,
        )


def _partition_size(inputs: Sequence[bytes]) -> int:
    """Return the items per partition: the default, halved until the inputs of each partition fit one blob."""
    size = ITEMS_PER_PARTITION
    lengths = [len(text) + 1 for text in inputs]
    while size > 1 and any(
        sum(lengths[start : start + size]) + 1 > PAYLOAD_BYTES_MAX for start in range(0, len(lengths), size)
    ):
        size //= 2
    return size


__all__ = ["Admission", "RunRequest", "check_request"]
