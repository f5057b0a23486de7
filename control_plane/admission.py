"""Admission: turns a submission into a run record, and in the same transaction places the run if possible.

- A run id is admitted at most once: a repeated request succeeds, a different request under the id is refused.
- A run in a segment keeps its id taken: each admission compares the version of the set of segments that was searched.
- A run is placed with its admission only if no run waits and an executor has room. Otherwise the run waits under
  `pending/`.
- The request is hashed before defaults are applied, so a resubmission still matches after the defaults change.
- A batch of any size is staged in parts, then admitted like any other run. The inputs themselves: see `inputs`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from control_plane.flow_store import check_flow
from control_plane.inputs import GivenInputs, InputCheck, StagedInputs, hash_inputs, partition_size
from control_plane.placement import new_status
from control_plane.pressure import retry_after_ms
from control_plane.run_index import entry
from stepflow.codec import encode
from stepflow.errors import AlreadyExists, Invalid, Overloaded
from stepflow.flow import Flow, apply_overrides
from stepflow.ids import new_run_id, parse_run_id
from stepflow.journal import partition_count
from stepflow.mesh.v1 import state_pb2
from stepflow.off_loop import off_loop
from stepflow.retry import backoff_to_proto
from stepflow.run.state import COMPOSES_FROM
from stepflow.store import Compare, Get, KeyValue, Op, Put, Txn, absent, keys, modified_at, present

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Mapping, Sequence

    from control_plane.archive.packed_runs import PackedRuns
    from control_plane.cluster import Cluster
    from control_plane.flow_checks import FlowChecks
    from control_plane.flow_store import FlowStore
    from control_plane.inputs import RunInputs
    from stepflow.config import RetryConfig
    from stepflow.retry import Backoff
    from stepflow.store.blobs import BlobStore
    from stepflow.store.grouping import Grouping

CONCURRENCY_MAX_DEFAULT = 10

ADMISSION_TRIES_MAX = 5
ADMISSION_RETRY_S = 0.05

PENDING_RUNS_MAX = 10_000
"""Runs that wait for an executor; further submissions are refused as Overloaded."""

UNSTABLE_PAUSE_S = 1.0
PENDING_PAUSE_S = 5.0
"""Pauses that refused clients are asked for."""

VARIABLES_BYTES_MAX = 256 * 1024
"""Bound on the variables, on the overrides, and on the labels."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A submission."""

    flow: Flow | str
    """A flow, or the id of a stored one."""
    inputs: Sequence[bytes] | StagedInputs
    """Compact JSON texts, one per item; or those of a batch, checked and staged (`Admission.stage`)."""
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
    check_flow: bool = False
    """Check the flow against the mesh before the run is admitted (`FlowChecks`)."""


class Admission:
    """Admits the submissions of a control plane."""

    def __init__(
        self,
        flows: FlowStore,
        packed: PackedRuns,
        blobs: BlobStore,
        cluster: Cluster,
        grouping: Grouping,
        retry: RetryConfig,
        on_admitted: Callable[[], None],
        *,
        checks: FlowChecks,
        newest_formats: Callable[[], bool],
    ) -> None:
        """`retry`: default of requests without a retry policy. `on_admitted`: called after each admission.

        `newest_formats`: returns True if new runs may use all that this version writes.
        """
        self._checks = checks
        self._newest_formats = newest_formats
        self._flows = flows
        self._packed = packed
        self._blobs = blobs
        self._cluster = cluster
        self._grouping = grouping
        self._retry = retry
        self._on_admitted = on_admitted

    async def submit(self, request: RunRequest) -> str:
        """Admit a run and return its id. See `ControlPlane.submit`."""
        # 1. Refuse a request that can never run.
        run_id = parse_run_id(request.run_id) if request.run_id else new_run_id()
        flow, flow_id = await self._checked_flow(run_id, request)
        if isinstance(request.inputs, StagedInputs):
            inputs: RunInputs = request.inputs
            check_request(flow, request)
        else:
            inputs = GivenInputs(self._blobs, run_id, request.inputs)
            await off_loop(sum(inputs.lengths), check_request, flow, request, items=len(inputs.lengths))

        # 2. Make the record; large inputs are durable in the blob store first.
        record = await self._record(request, inputs, flow.name or "", flow_id)

        # 3. Write it, with the assignment if an executor has room.
        for _ in range(ADMISSION_TRIES_MAX):
            if await self._admit(run_id, record, flow):
                self._on_admitted()
                return run_id
            await asyncio.sleep(ADMISSION_RETRY_S)  # The chosen executor died; wait for the watch to show it.
        raise Overloaded(
            "PLACEMENT_UNSTABLE",
            f"each of {ADMISSION_TRIES_MAX} chosen executors died before it got the run; try again",
            retry_after_ms=retry_after_ms(UNSTABLE_PAUSE_S),
        )

    async def stage(self, request: RunRequest, parts: AsyncIterable[Sequence[bytes]]) -> RunRequest:
        """Return the request with the inputs of a batch of any size, for `submit`. The request has none itself.

        Inputs are checked and put into the blob store as they arrive; memory holds one partition. No run exists yet.

        Raises: Invalid, NotFound (the flow), the errors of `parts` and of the blob store.
        """
        # 1. Refuse a request that can never run, before its inputs arrive.
        run_id = parse_run_id(request.run_id) if request.run_id else new_run_id()
        flow, _ = await self._checked_flow(run_id, request)
        check_request(flow, request)

        # 2. Check and stage the inputs as they arrive.
        check = InputCheck(flow, schema=request.check_input)
        staged = StagedInputs(self._blobs, run_id)
        async for texts in parts:
            await off_loop(sum(map(len, texts)), check.check, texts, items=len(texts))
            await staged.add(texts)
        await staged.finish()
        return replace(request, run_id=run_id, inputs=staged)

    async def _checked_flow(self, run_id: str, request: RunRequest) -> tuple[Flow, str]:
        """Return the flow of a request and its id; the flow is stored. Raises: Invalid, NotFound."""
        document = b""
        if isinstance(request.flow, Flow):
            flow = request.flow
            flow_id, document = self._flows.prepare(flow)
        else:
            flow, flow_id = await self._flows.get(request.flow), request.flow

        if request.check_flow:
            await self._checks.admit(run_id, flow, flow_id, request.variables, request.overrides)
        if document:
            await self._flows.put_document(flow_id, document)
        return flow, flow_id

    async def _admit(self, run_id: str, record: state_pb2.RunRecord, flow: Flow) -> bool:
        """Admit the run, or find it admitted; return False if the chosen executor died, or the flow was missing.

        Raises: AlreadyExists, Overloaded.
        """
        # 1. Find the id in a segment.
        segments, existing = await self._packed.record(run_id)
        if existing is not None:
            return _is_admitted(run_id, existing, record)

        # 2. Place the run with its record, or let it wait.
        key, head = keys.run(run_id), keys.segments_head()
        compares: list[Compare] = [absent(key), modified_at(head, segments), present(keys.flow(record.flow_id))]
        writes: list[Op] = [Put(key, record.SerializeToString()), entry(run_id, record)]
        executor = self._room_for(record) if partition_count(record) == 1 else None
        if executor is not None:
            compares.append(present(keys.session_executor(executor)))
            writes.append(Put(keys.status(run_id, 0), new_status(record, 0).SerializeToString()))
            writes.append(Put(keys.assigned(executor, run_id, 0), b""))
        else:
            writes.append(Put(keys.pending(run_id), b""))

        # 3. Write, unless the id is taken, runs were packed, the flow is gone or the executor's session has ended.
        with self._cluster.planning(executor):
            result = await self._grouping.txn(Txn(tuple(compares), tuple(writes), (Get(key), Get(head))))
        if result.succeeded:
            return True

        # 4. Find out which of them. The flow is known here and may be gone from the store, if that was wiped.
        found, newer = result.responses
        if isinstance(found, KeyValue):
            return _is_admitted(run_id, found, record)
        if not await self._packed.note_version(segments, newer.mod_revision if isinstance(newer, KeyValue) else 0):
            await self._flows.put(flow)
        return False

    def _room_for(self, record: state_pb2.RunRecord) -> str | None:
        """Choose an executor for a new run; None while other runs wait. Raises: Overloaded."""
        if not self._cluster.pending:
            return self._cluster.choose({}, engine_version=record.policy.engine_version)
        if len(self._cluster.pending) >= PENDING_RUNS_MAX:
            raise Overloaded(
                "TOO_MANY_PENDING",
                f"{PENDING_RUNS_MAX:,} runs wait for an executor; try again later",
                retry_after_ms=retry_after_ms(PENDING_PAUSE_S),
            )
        return None

    async def _record(
        self, request: RunRequest, inputs: RunInputs, flow_name: str, flow_id: str
    ) -> state_pb2.RunRecord:
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
            items_per_partition=partition_size(inputs.lengths),
            items_total=len(inputs.lengths),
            labels_json=encode(dict(request.labels)) if request.labels else b"",
        )

        # 2. Its hash, before the defaults below: a resubmission must match after the defaults change.
        digest = hashlib.sha256(record.SerializeToString(deterministic=True))
        digest.update(repr((request.transport_retries_max, request.backoff)).encode())
        await hash_inputs(digest, inputs)
        record.request_hash = digest.hexdigest()

        # 3. The defaults.
        retries_max, backoff = request.transport_retries_max, request.backoff or self._retry.backoff
        record.policy.transport_retries_max = self._retry.transport_max_retries if retries_max is None else retries_max
        record.policy.backoff.CopyFrom(backoff_to_proto(backoff))
        record.policy.engine_version = self._cluster.engine_version if self._newest_formats() else COMPOSES_FROM - 1
        record.policy.locates_failures = True
        record.created_at_ms = time.time_ns() // 1_000_000

        # 4. The inputs.
        await inputs.store(record)
        return record


def _is_admitted(run_id: str, existing: KeyValue, record: state_pb2.RunRecord) -> bool:
    """Return True for the same request. Raises: AlreadyExists."""
    if state_pb2.RunRecord.FromString(existing.value).request_hash == record.request_hash:
        return True
    raise AlreadyExists("RUN_EXISTS", f"run {run_id} exists, with a different request", run_id=run_id)


def check_request(flow: Flow, request: RunRequest) -> None:
    """Refuse a request that can never run. `flow` is known to be valid; staged inputs were checked. Raises: Invalid."""
    if request.overrides is not None:
        check_flow(apply_overrides(flow, request.overrides))
    if request.concurrency_max is not None and request.concurrency_max < 1:
        raise Invalid("CONCURRENCY_INVALID", "max concurrency must be at least 1")
    if request.variables and len(encode(dict(request.variables))) > VARIABLES_BYTES_MAX:
        raise Invalid("VARIABLES_TOO_LARGE", f"the variables are larger than {VARIABLES_BYTES_MAX:,} bytes")
    for what, tree in (("overrides", request.overrides), ("labels", dict(request.labels))):
        if tree and len(encode(tree)) > VARIABLES_BYTES_MAX:
            raise Invalid(f"{what.upper()}_TOO_LARGE", f"the {what} are larger than {VARIABLES_BYTES_MAX:,} bytes")

    if not isinstance(request.inputs, StagedInputs):
        InputCheck(flow, schema=request.check_input).check(request.inputs)


__all__ = ["Admission", "RunRequest", "check_request"]
