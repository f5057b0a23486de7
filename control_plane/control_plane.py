"""The control plane: admits runs, places them on executors, takes over from dead ones, answers what clients ask.

Promises:
- A run id is admitted at most once; the same request again is a success, another one is refused.
- A run is admitted, and placed if an executor has room, in one transaction; otherwise it waits under `pending/`.
- An assignment moves only when its executor's session is gone, and only to an executor whose session stands.
- It keeps no state of its own: every replica can answer everything, and a restart loses nothing.

Does not drive runs, and writes nothing of a run after its admission but the assignment and the inbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from control_plane.cluster import Cluster
from control_plane.leader import Leader, new_status
from control_plane.listing import PAGE_SIZE_MAX, Listing, RunFilter
from control_plane.liveness import Liveness
from control_plane.waits import Waits
from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, blob_id, decode, encode
from stepflow.config.load import RetryConfig
from stepflow.errors import Conflict, Exists, Invalid, NotFound, Overloaded
from stepflow.flow import Flow, InputValidator, apply_overrides, flow_bytes, flow_from_tree, validate_flow
from stepflow.ids import new_run_id, parse_run_id
from stepflow.journal import partition_count, read_record
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.retry import backoff_to_proto
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import (
    Compare,
    Delete,
    Get,
    KeyValue,
    Op,
    Put,
    Txn,
    absent,
    keys,
    modified_at,
    present,
    range_all,
)
from stepflow.store.grouping import Grouping
from stepflow.store.lease import LEASE_TTL_S
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from control_plane.views import ItemView, RunView
    from stepflow.retry import Backoff
    from stepflow.rpc.tls import Tls
    from stepflow.run.views import StepView
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

_T = TypeVar("_T")

ITEMS_PER_PARTITION = 64
CONCURRENCY_MAX_DEFAULT = 10
RUN_ITEMS_MAX = 100_000
ADMISSION_TRIES_MAX = 5
FLOWS_KEPT_MAX = 256

CHECKED_ITEMS_MAX = 100
"""Items that are checked on the event loop; more of them would hold everybody up for some milliseconds."""

PENDING_RUNS_MAX = 10_000
"""Runs that wait for an executor. More would only wait longer."""

RECORD_INPUTS_BYTES_MAX = 256 * 1024
"""Inputs that stand in the run's record; more of them go to the blob store, a partition at a time."""

VARIABLES_BYTES_MAX = 256 * 1024


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to run. `flow` may be the id of a stored one. `inputs` are compact JSON texts, one an item. `run_id` None:
    one is made."""

    flow: Flow | str
    inputs: Sequence[bytes]
    run_id: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    overrides: Any = None
    concurrency_max: int | None = None
    transport_retries_max: int | None = None
    """None: as the control plane was told."""
    backoff: Backoff | None = None
    """The same."""
    check_input: bool = True
    labels: Mapping[str, Any] = field(default_factory=dict)


class ControlPlane:
    """One replica. `start` also makes it stand for leader, unless told otherwise."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        *,
        lease_ttl_s: float = LEASE_TTL_S,
        tls: Tls | None = None,
        retry: RetryConfig | None = None,
    ) -> None:
        """`tls`: how executors are reached. `retry`: of runs that ask for nothing else."""
        self.id = f"control-plane-{uuid4().hex[:12]}"
        self._store = store
        self._blobs = blobs
        self._retry = retry or RetryConfig()
        self.listing = Listing(store, blobs)
        self._cluster = Cluster(store, self._cluster_changed)
        liveness = Liveness(store, self.id, tls=tls)
        self._leader = Leader(store, self._cluster, self.id, liveness, lease_ttl_s=lease_ttl_s)
        self._flows: dict[str, Flow] = {}
        """Flows that were checked, by id."""
        self._grouping = Grouping(store)
        # A partition that has ended makes room for another one.
        self._waits = Waits(store, self._grouping, self._leader.look)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, lead: bool = True) -> None:
        self._tasks = [asyncio.create_task(self._waits.follow(), name="watch statuses")]
        await self._cluster.start()
        if lead:
            self._leader.start()

    async def close(self) -> None:
        await self._leader.close()
        await self._cluster.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._grouping.close()

    def leadership(self) -> Compare | None:
        """Return what holds as long as this replica leads; None while it does not."""
        return self._leader.fence() if self._leader.leading else None

    def owners(self, run_id: str) -> dict[str, str]:
        """Return the executors that own partitions of a run, as far as is known here, with their addresses."""
        cluster = self._cluster
        return {
            executor_id: session.address
            for executor_id in cluster.owners.get(run_id, ())
            if (session := cluster.sessions.get(executor_id)) is not None
        }

    def places_on(self, executor_id: str) -> bool:
        """Whether an executor would get new runs, as far as is known here."""
        session = self._cluster.sessions.get(executor_id)
        return session is not None and not session.draining

    def _cluster_changed(self) -> None:
        self._leader.look()

    # --- flows --------------------------------------------------------------------------------------------------------

    async def store_flow(self, flow: Flow) -> str:
        """Store a flow and return its id; storing it again changes nothing. Raises: Invalid (fatal diagnostics)."""
        document = flow_bytes(flow)
        identity = blob_id(document)
        if identity not in self._flows:
            check_flow(flow)
            self._remember(identity, flow)
        key = keys.flow(identity)
        await self._store.txn(Txn((absent(key),), (Put(key, document),)))
        return identity

    async def _stored_flow(self, identity: str) -> Flow:
        flow = self._flows.get(identity)
        if flow is None:
            flow = flow_from_tree(decode(await self.get_flow(identity)))
            self._remember(identity, flow)
        return flow

    def _remember(self, identity: str, flow: Flow) -> None:
        if len(self._flows) >= FLOWS_KEPT_MAX:
            self._flows.pop(next(iter(self._flows)))
        self._flows[identity] = flow

    async def get_flow(self, identity: str) -> bytes:
        """Return the normalised document. Raises: NotFound."""
        found = await self._store.get(keys.flow(identity))
        if found is None:
            raise NotFound("FLOW_NOT_FOUND", f"there is no flow {identity}", flow_id=identity)
        return found.value

    # --- admission ----------------------------------------------------------------------------------------------------

    async def submit(self, request: RunRequest) -> str:
        """Admit a run and return its id. The same request under the same id is admitted once.

        Raises:
            Invalid: flow, inputs, variables or overrides cannot be run as they are.
            Exists: RUN_EXISTS, the id belongs to another request.
            Overloaded: the mesh changes faster than the run can be placed.
        """
        run_id = parse_run_id(request.run_id) if request.run_id else new_run_id()
        if isinstance(request.flow, Flow):
            flow, identity = request.flow, await self.store_flow(request.flow)
        else:
            flow, identity = await self._stored_flow(request.flow), request.flow
        if len(request.inputs) > CHECKED_ITEMS_MAX or sum(map(len, request.inputs)) > RECORD_INPUTS_BYTES_MAX:
            await asyncio.to_thread(check_request, flow, request)
        else:
            check_request(flow, request)
        record = await self._record(run_id, request, flow.name or "", identity)
        key = keys.run(run_id)
        single = partition_count(record) == 1
        for _ in range(ADMISSION_TRIES_MAX):
            executor = self._room_for(record) if single else None
            compares: list[Compare] = [absent(key)]
            writes: list[Op] = [Put(key, record.SerializeToString())]
            if executor is not None:
                compares.append(present(keys.session_executor(executor)))
                writes.append(Put(keys.status(run_id, 0), new_status(record, 0).SerializeToString()))
                writes.append(Put(keys.assigned(executor, run_id, 0), b""))
            else:
                writes.append(Put(keys.pending(run_id), b""))
            with self._cluster.planning(executor):
                result = await self._grouping.txn(Txn(tuple(compares), tuple(writes), (Get(key),)))
            if result.succeeded:
                self._leader.look()
                return run_id
            standing = result.responses[0]
            if isinstance(standing, KeyValue):
                if state_pb2.RunRecord.FromString(standing.value).request_hash == record.request_hash:
                    return run_id
                raise Exists("RUN_EXISTS", f"run {run_id} exists and was asked for differently", run_id=run_id)
            await asyncio.sleep(0.05)  # the executor has just gone; its session's end is on its way to us
        raise Overloaded("PLACEMENT_UNSTABLE", "no executor stayed long enough to take the run; try again")

    def _room_for(self, record: state_pb2.RunRecord) -> str | None:
        """Choose who gets the run at once; nobody while others wait. Raises: Overloaded."""
        if not self._cluster.pending:
            return self._cluster.choose({}, engine_version=record.policy.engine_version)
        if len(self._cluster.pending) >= PENDING_RUNS_MAX:
            raise Overloaded("TOO_MANY_PENDING", f"{PENDING_RUNS_MAX:,} runs wait for an executor; try again later")
        return None

    async def _record(self, run_id: str, request: RunRequest, flow_name: str, identity: str) -> state_pb2.RunRecord:
        record = state_pb2.RunRecord(
            flow_id=identity,
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
        # What was asked alone: the same request is the same whatever the mesh was told meanwhile.
        digest = hashlib.sha256(record.SerializeToString(deterministic=True))
        digest.update(repr((request.transport_retries_max, request.backoff)).encode())
        for text in request.inputs:
            digest.update(b"%d:" % len(text) + text)
        record.request_hash = digest.hexdigest()
        retries_max, backoff = request.transport_retries_max, request.backoff or self._retry.backoff
        record.policy.transport_retries_max = self._retry.transport_max_retries if retries_max is None else retries_max
        record.policy.backoff.CopyFrom(backoff_to_proto(backoff))
        record.policy.engine_version = ENGINE_VERSION
        record.created_at_ms = time.time_ns() // 1_000_000
        await self._put_inputs(run_id, record, request.inputs)
        return record

    async def _put_inputs(self, run_id: str, record: state_pb2.RunRecord, inputs: Sequence[bytes]) -> None:
        size = record.items_per_partition
        if sum(map(len, inputs)) <= RECORD_INPUTS_BYTES_MAX:
            record.inputs.extend(pb.Payload(json=text) for text in inputs)
        elif any(len(text) + 2 > PAYLOAD_BYTES_MAX for text in inputs):
            for text in inputs:  # as they are: in an array one of them would be larger than a blob may be
                record.inputs.add(blob=await self._blobs.put(text, scope=run_id))
        else:
            for start in range(0, len(inputs), size):
                content = b"[" + b",".join(inputs[start : start + size]) + b"]"
                record.partition_inputs.append(await self._blobs.put(content, scope=run_id))

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get_run(self, run_id: str) -> RunView:
        """Raises: NotFound."""
        return await self._waits.view(run_id)

    async def list_runs(self) -> list[RunView]:
        """Return all runs, the newest first."""
        return await _all_pages(lambda token: self.listing.runs(RunFilter(), PAGE_SIZE_MAX, token))

    async def items(self, run_id: str) -> list[ItemView]:
        """Return every item in index order; large results are read from the blob store. Raises: NotFound, DataLoss."""
        return await _all_pages(lambda token: self.listing.items(run_id, PAGE_SIZE_MAX, token))

    async def steps(self, run_id: str, *, with_results: bool = False) -> list[StepView]:
        """Return the steps that have started, sub-runs included, from the journals. Raises: NotFound, DataLoss.

        `with_results`: load results from the blob store too.
        """
        return await _all_pages(
            lambda token: self.listing.steps(run_id, PAGE_SIZE_MAX, token, with_results=with_results)
        )

    async def wait(self, run_id: str, *, timeout_s: float | None = None) -> RunView:
        """Return once the run has ended, or after the time-out, with its view as it is then. Raises: NotFound."""
        return await self._waits.wait(run_id, timeout_s=timeout_s)

    def changes(self, run_id: str) -> AbstractContextManager[asyncio.Event]:
        """Give an event that is set whenever the status of a partition of the run may have changed."""
        return self._waits.changes(run_id)

    # --- cancel -------------------------------------------------------------------------------------------------------

    async def cancel(self, run_id: str) -> RunView:
        """Ask for the run's end. Cancelling a run that has ended changes nothing. Raises: NotFound, Conflict."""
        # One key, however often a run is cancelled: what repeats add nothing must take no room.
        message = Put(keys.inbox(run_id, CANCEL_ID), state_pb2.InboxMessage(cancel=True).SerializeToString())
        tries = 0
        while tries < CANCEL_TRIES_MAX:
            pending = await self._store.get(keys.pending(run_id))
            if pending is not None:  # a long batch takes several transactions; each that succeeds is progress
                tries += not await self._cancel_pending(run_id, pending, message)
                continue
            view = await self.get_run(run_id)
            if view.terminal:
                return view
            running = await self._running_partition(run_id)
            compares = [absent(keys.pending(run_id))]
            if running is not None:  # placed, and not ended yet: only its owner changes the status, and only once
                compares.append(modified_at(running.key, running.mod_revision))
                if (await self._store.txn(Txn(tuple(compares), (message,)))).succeeded:
                    return await self.get_run(run_id)
            tries += 1
        raise Conflict("CANCEL_RACED", "the run changes too fast to be cancelled just now; try again")

    async def _running_partition(self, run_id: str) -> KeyValue | None:
        async for item in range_all(self._store, keys.status_of_run(run_id)):
            if state_pb2.PartitionStatus.FromString(item.value).status == pb.RUN_STATUS_RUNNING:
                return item
        return None

    async def _cancel_pending(self, run_id: str, pending: KeyValue, message: Put) -> bool:
        """End partitions that were never placed; those placed get the message. Return whether the store took it."""
        record = await read_record(self._store, run_id)
        first = state_pb2.PendingRun.FromString(pending.value).next_partition
        total = partition_count(record)
        end = min(total, first + PARTITIONS_CANCELLED_PER_TXN)
        writes: list[Op] = [message]
        for partition in range(first, end):
            status = new_status(record, partition)
            status.status = pb.RUN_STATUS_CANCELLED
            status.items_cancelled = status.items_total
            status.completed_at_ms = time.time_ns() // 1_000_000
            writes.append(Put(keys.status(run_id, partition), status.SerializeToString()))
        if end == total:
            writes.append(Delete(pending.key))
        else:  # what is placed of the rest meanwhile finds the message in its inbox
            writes.append(Put(pending.key, state_pb2.PendingRun(next_partition=end).SerializeToString()))
        return (await self._store.txn(Txn((modified_at(pending.key, pending.mod_revision),), tuple(writes)))).succeeded


async def _all_pages(page: Callable[[str], Awaitable[tuple[list[_T], str]]]) -> list[_T]:
    """Put the pages of a list together, each got by the token of the one before."""
    views, token = await page("")
    while token:
        more, token = await page(token)
        views += more
    return views


PARTITIONS_CANCELLED_PER_TXN = 100
CANCEL_TRIES_MAX = 20
CANCEL_ID = "cancel"


def check_flow(flow: Flow) -> None:
    """Refuse a flow with fatal diagnostics. Raises: Invalid."""
    diagnostics = validate_flow(flow)
    if diagnostics.num_fatal:
        first = next(diagnostic for diagnostic in diagnostics if diagnostic.level == "fatal")
        problem = f"the flow cannot run: {first.formatted}, at {first.path}"
        raise Invalid("FLOW_INVALID", problem, diagnostics=diagnostics.to_tree())


def check_request(flow: Flow, request: RunRequest) -> None:
    """Refuse what could never run. `flow` itself has been checked. Raises: Invalid."""
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
    """Return how many items go into a partition: as many as usual, fewer where these would not fit one blob."""
    size = ITEMS_PER_PARTITION
    lengths = [len(text) + 1 for text in inputs]
    while size > 1 and any(
        sum(lengths[start : start + size]) + 1 > PAYLOAD_BYTES_MAX for start in range(0, len(lengths), size)
    ):
        size //= 2
    return size


assert INLINE_BYTES_MAX < RECORD_INPUTS_BYTES_MAX
