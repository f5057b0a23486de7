"""`Client`, for asyncio programs. Each method is a call of the API, or the pages of a list.

Requests (`requests`), batches (`batch`), results (`model`, `conversion`), events (`watch`) and connections
(`connection`) have their own modules.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from stepflow import codec
from stepflow.client.batch import BatchInputs
from stepflow.client.busy import BusyPatience, is_busy
from stepflow.client.connection import CALL_TIMEOUT_S, Connection
from stepflow.client.conversion import (
    cluster_of,
    component_of,
    diagnostic_of,
    flow_info_of,
    item_of,
    run_of,
    step_of,
)
from stepflow.client.model import QUEUED, HostRestart, StoredFlow
from stepflow.client.requests import (
    NOT_GIVEN,
    document_message,
    flow_reference,
    given,
    submission,
    validation,
    value_message,
)
from stepflow.client.result_stream import result_chunks, save_chunks
from stepflow.client.watch import RunWatch
from stepflow.errors import FailedPrecondition, Invalid, NotFound, Overloaded, StepflowError
from stepflow.mesh.v1 import blobs_pb2, cluster_pb2, components_pb2, flows_pb2, runs_pb2, values_pb2
from stepflow.rpc.labels import has_labels

if TYPE_CHECKING:
    import os
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Mapping,
    )
    from types import TracebackType

    from stepflow.client.model import ClusterInfo, Component, FlowDiagnostic, FlowInfo, Run, RunItem, RunStep
    from stepflow.client.requests import Document, FlowLike, Named
    from stepflow.rpc.tls import Tls

WAIT_SLICE_S = 30.0
"""Length of one call in a long wait, so that a silently dead connection is noticed."""

DRAIN_TIMEOUT_S = 75.0
"""Longer than the server's own time limit, so that the server's error arrives."""

RESTART_TIMEOUT_S = 900.0
"""For all hosts of a plugin, one after another."""

BUSY_PATIENCE_S = 60.0
"""Default patience of submissions with a mesh that is busy."""

RUNS_PER_CALL = 200

UNARY_INPUTS_BYTES = 4 * 1024 * 1024
"""Inputs submitted in one message; larger batches are streamed."""

OLD_BATCH_BYTES_MAX = 30 * 1024 * 1024
"""Inputs of one message to a server without `SubmitBatch`, below the limit of a message."""

CHUNK_BYTES = 1024 * 1024
JSON = values_pb2.VALUE_FORM_JSON


class Client:
    """A client of the mesh for one event loop. Close the client, or use `async with`."""

    def __init__(
        self,
        server: str | None = None,
        *,
        tls: Tls | None = None,
        patience_s: float = 10.0,
        busy_patience_s: float = BUSY_PATIENCE_S,
        on_busy: Callable[[Overloaded, float], None] | None = None,
    ) -> None:
        """`server`: HOST:PORT, several with commas, or a gRPC target such as `dns:///mesh:7840`; default:
        `STEPFLOW_SERVER`, else localhost:7840. Calls are repeated for `patience_s` while no server answers.

        Submissions are repeated for `busy_patience_s` while the mesh is busy and refuses them as Overloaded; 0: never.
        `on_busy` is called with the error and this time when a submission begins to wait.

        Raises: Invalid (`SERVER_INVALID`).
        """
        self._connection = Connection(server, tls, patience_s)
        self.busy_patience_s = busy_patience_s
        self.on_busy = on_busy

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls in flight end with an error. Idempotent."""
        await self._connection.close()

    async def store_flow(self, flow: Document, *, label: str = NOT_GIVEN) -> StoredFlow:
        """Store a flow, optionally with a label. Raises: Invalid (`FLOW_INVALID`, or a reason of the parser)."""
        label = given(label, "LABEL_INVALID", "the label")
        request = flows_pb2.StoreFlowRequest(document=document_message(flow), label=label)
        reply = await self._connection.call(lambda to: to.flows.StoreFlow, request)
        found = [diagnostic_of(diagnostic) for diagnostic in reply.diagnostics]
        return StoredFlow(reply.flow_id, reply.version, found, reply.newest_version, reply.label_from)

    async def validate_flow(
        self,
        flow: FlowLike,
        *,
        variables: Mapping[str, Any] | None = None,
        overrides: Any = None,
        type_check: bool = False,
        strict: bool = False,
    ) -> list[FlowDiagnostic]:
        """Return what the check of a submission finds, fatal or not: `submit` raises Invalid for errors.

        `variables`: those of the run; None: not known yet, so that none is missing. `type_check` also compares all
        types that are known, and `strict` makes errors of warnings. A server of an earlier version checks the flow
        alone.

        Raises: Invalid (not readable as a flow), NotFound.
        """
        request = validation(flow, variables, overrides, type_check=type_check, strict=strict)
        try:
            reply = await self._connection.call(lambda to: to.flows.ValidateFlow, request)
        except FailedPrecondition as error:
            if error.reason != "CALL_UNKNOWN":
                raise
            reply = await self._validate_alone(request.flow)
        return [diagnostic_of(found) for found in reply.diagnostics]

    async def _validate_alone(self, flow: flows_pb2.FlowReference) -> flows_pb2.StoreFlowResponse:
        """Validate a flow at a server that does not check against its components."""
        document = flow.document
        if not flow.HasField("document"):
            stored = flows_pb2.GetFlowRequest(flow=flow, value_form=JSON)
            document = (await self._connection.call(lambda to: to.flows.GetFlow, stored)).document
        request = flows_pb2.StoreFlowRequest(document=document, validate_only=True)
        reply: flows_pb2.StoreFlowResponse = await self._connection.call(lambda to: to.flows.StoreFlow, request)
        return reply

    async def get_flow(self, flow: Named | str) -> tuple[str, dict[str, Any]]:
        """Return id and document. Raises: NotFound."""
        request = flows_pb2.GetFlowRequest(flow=flow_reference(flow), value_form=JSON)
        reply = await self._connection.call(lambda to: to.flows.GetFlow, request)
        return reply.flow_id, codec.decode(reply.document.json)

    async def list_flows(self, name_prefix: str = "") -> AsyncGenerator[FlowInfo, None]:
        """Yield the named flows in name order."""
        request = flows_pb2.ListFlowsRequest(name_prefix=name_prefix)
        async for reply in self._pages(lambda to: to.flows.ListFlows, request):
            for flow in reply.flows:
                yield flow_info_of(flow)

    async def delete_flow(self, name: str, *, label: str = NOT_GIVEN) -> None:
        """Delete a name, or one label of a name. Raises: NotFound, Invalid (`LABEL_INVALID`)."""
        label = given(label, "LABEL_INVALID", "the label")
        request = flows_pb2.DeleteFlowRequest(name=name, label=label)
        await self._delete_idempotently(lambda to: to.flows.DeleteFlow, request)

    async def submit(self, flow: FlowLike, input: Any = None, **options: Any) -> str:
        """Submit a run of one item and return the run id; `options` as for `submit_batch`."""
        return await self.submit_batch(flow, [input], **options)

    async def submit_batch(
        self,
        flow: FlowLike,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        run_id: str | None = None,
        variables: Mapping[str, Any] | None = None,
        overrides: Any = None,
        concurrency_max: int | None = None,
        check_input: bool = True,
        labels: Mapping[str, Any] | None = None,
        retry: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> str:
        """Submit a run with an item per input and return the run id.

        `inputs` may be of any size: they are read and sent in parts. They are read again after a lost connection; those
        of an iterator are kept in a temporary file for that. An input has at most 16 MiB, a batch 100,000 inputs.

        The call is idempotent: retries of the client make a single run. A `run_id` (a UUID) extends the guarantee over
        a restart of the program. `retry` has the form of `retry` in a configuration; missing members have the
        mesh's values.

        The mesh checks the flow first, unless `check` is False: Invalid (`FLOW_INVALID`, `VARIABLES_INVALID`) has the
        findings in `details["diagnostics"]`. `check_input` False skips the check of inputs by the flow's schema.

        Raises: Invalid, NotFound, AlreadyExists (`RUN_EXISTS`); Overloaded, after `busy_patience_s`.
        """
        request = submission(
            flow,
            (),
            run_id,
            variables,
            overrides,
            concurrency_max,
            check_input=check_input,
            labels=labels,
            retry=retry,
            check=check,
        )
        with closing(BatchInputs(inputs)) as batch:
            texts = await batch.up_to(UNARY_INPUTS_BYTES)
            if texts is None:
                try:
                    reply = await self._until_admitted(
                        lambda: self._connection.send(lambda to: to.runs.SubmitBatch, lambda: batch.messages(request))
                    )
                    return str(reply.run_id)
                except FailedPrecondition as error:
                    if error.reason != "CALL_UNKNOWN":
                        raise
                    texts = await _for_old_server(batch)

        request.inputs.extend(values_pb2.Value(json=text) for text in texts)
        reply = await self._until_admitted(lambda: self._connection.call(lambda to: to.runs.SubmitRun, request))
        return str(reply.run_id)

    async def submit_runs(self, flow: FlowLike, inputs: Iterable[Any], **options: Any) -> list[str | StepflowError]:
        """Submit one run per input; return the run ids in input order, with an error for each rejected run.

        `options` as for `submit_batch`, without `run_id`.
        """
        outcomes: list[str | StepflowError] = []
        for request in _submissions(submission(flow, [value], None, **options) for value in inputs):
            outcomes += await self._submit_together(request)
        return outcomes

    async def _submit_together(self, request: runs_pb2.SubmitRunsRequest) -> list[str | StepflowError]:
        """Submit runs with one call, and those again for which the mesh was too busy; return the outcomes in order."""
        busy = BusyPatience(self.busy_patience_s, self.on_busy)
        outcomes: dict[int, str | StepflowError] = {}
        left = list(range(len(request.runs)))
        while True:
            some = runs_pb2.SubmitRunsRequest(runs=[request.runs[index] for index in left])
            reply = await self._connection.call(lambda to: to.runs.SubmitRuns, some)
            outcomes.update(zip(left, map(_submitted, reply.outcomes), strict=True))
            found = {index: outcomes[index] for index in left}
            refused = {
                index: error for index, error in found.items() if isinstance(error, Overloaded) and is_busy(error)
            }
            try:
                for error in list(refused.values())[-1:]:  # the last in line
                    await busy.wait(error)
            except Overloaded:
                refused = {}
            left = list(refused)
            if not left:
                return [outcomes[index] for index in range(len(request.runs))]

    async def _until_admitted(self, submit: Callable[[], Awaitable[Any]]) -> Any:
        """Submit, and again while the mesh is busy. Raises: Overloaded, after `busy_patience_s`; those of `submit`."""
        busy = BusyPatience(self.busy_patience_s, self.on_busy)
        while True:
            try:
                return await submit()
            except Overloaded as error:
                await busy.wait(error)

    async def get(self, run_id: str) -> Run:
        """Return a run. Raises: NotFound."""
        reply = await self._connection.call(lambda to: to.runs.GetRun, runs_pb2.GetRunRequest(run_id=run_id))
        return run_of(reply.run)

    async def wait(self, run_id: str, *, timeout_s: float | None = None) -> Run:
        """Return the run once ended, or in the current state after the time-out (see `Run.ended`). Raises: NotFound."""
        left_s = timeout_s
        while True:
            slice_s = WAIT_SLICE_S if left_s is None else min(WAIT_SLICE_S, left_s)
            request = runs_pb2.WaitRunRequest(run_id=run_id, timeout_ms=max(1, int(slice_s * 1000)))
            reply = await self._connection.call(lambda to: to.runs.WaitRun, request, timeout_s=slice_s + CALL_TIMEOUT_S)
            run = run_of(reply.run)

            left_s = None if left_s is None else left_s - slice_s
            if run.ended or (left_s is not None and left_s <= 0):
                return run

    def watch(
        self,
        run_id: str,
        *,
        positions: Mapping[int, int] | None = None,
        include_results: bool = False,
        include_logs: bool = False,
        until_now: bool = False,
    ) -> RunWatch:
        """Follow a run to its end, over the death of servers: `async for event in client.watch(run_id)`.

        Pass the `positions` of an earlier `RunWatch` to continue behind them. `include_logs`: what components log and
        print, as far as hosts have it. `until_now`: end behind what is known now, also if the run goes on.
        """
        return RunWatch(
            self._connection,
            run_id,
            dict(positions or {}),
            include_results=include_results,
            include_logs=include_logs,
            until_now=until_now,
        )

    async def list_runs(
        self,
        *,
        statuses: Iterable[str] = (),
        flow_name: str = "",
        created_since_ms: int = 0,
        page_size: int = 0,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Run, None]:
        """Yield runs, newest first; `statuses` are names such as `failed`.

        `labels`: only runs with all of these labels; the text of a label that is no string is its compact JSON, such as
        `true`. Raises: Invalid (`STATUS_INVALID`).
        """
        wanted = frozenset(statuses)
        request = runs_pb2.ListRunsRequest(
            flow_name=flow_name, created_since_ms=created_since_ms, page_size=page_size, labels=labels
        )
        for status in sorted({"running" if status == QUEUED else status for status in wanted}):
            try:
                request.statuses.append(f"RUN_STATUS_{status.upper()}")  # type: ignore[arg-type]  # accepts names too
            except ValueError:
                raise Invalid("STATUS_INVALID", f"{status!r} is not a run status") from None

        async for reply in self._pages(lambda to: to.runs.ListRuns, request):
            for run in map(run_of, reply.runs):
                # A server of an earlier version knows neither queued runs nor filters by label.
                if (not wanted or run.status in wanted) and has_labels(run.labels, labels or {}):
                    yield run

    async def cancel(self, run_id: str) -> Run:
        """Request the cancellation of a run; return the run in its current state. Raises: NotFound."""
        reply = await self._connection.call(lambda to: to.runs.CancelRun, runs_pb2.CancelRunRequest(run_id=run_id))
        return run_of(reply.run)

    async def signal(
        self, run_id: str, name: str, payload: Any = None, *, item: int = 0, signal_id: str | None = None
    ) -> str:
        """Send a signal to an item's step of `/builtin/wait_for_signal`; return the signal id.

        The call is idempotent: retries of the client make one signal. Pass a `signal_id` (a UUID) to extend the
        guarantee over a restart of the program. Raises: NotFound, Invalid, FailedPrecondition (`RUN_ENDED`),
        Overloaded.
        """
        request = runs_pb2.SignalRunRequest(
            run_id=run_id,
            name=name,
            payload=value_message(payload, "the payload"),
            item=item,
            signal_id=given(signal_id, "SIGNAL_INVALID", "the signal id") or str(uuid4()),
        )
        return str((await self._connection.call(lambda to: to.runs.SignalRun, request)).signal_id)

    async def delete(self, run_id: str) -> None:
        """Delete an ended run. Raises: NotFound, FailedPrecondition (`RUN_NOT_ENDED`)."""
        await self._delete_idempotently(lambda to: to.runs.DeleteRun, runs_pb2.DeleteRunRequest(run_id=run_id))

    async def items(self, run_id: str, *, page_size: int = 0, first: int = 0) -> AsyncGenerator[RunItem, None]:
        """Yield the items of a run in input order, from item `first` on. Raises: NotFound."""
        request = runs_pb2.ListItemsRequest(run_id=run_id, value_form=JSON, page_size=page_size, first_item=first)
        async for reply in self._pages(lambda to: to.runs.ListItems, request):
            for item in reply.items:
                if item.item >= first:  # a server of an earlier version begins with item 0
                    yield item_of(item)

    def get_result(self, run_id: str, item: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the result of an ended item as compact JSON text, in chunks of up to 1 MiB: results of any size.

        Raises: NotFound (`RUN_NOT_FOUND`, `ITEM_NOT_FOUND`), FailedPrecondition (`ITEM_NOT_ENDED`; `ITEM_FAILED`, with
        the failure in `details`), DataLoss.
        """
        return result_chunks(self._connection, run_id, item)

    async def save_result(self, run_id: str, path: str | os.PathLike[str], item: int = 0) -> int:
        """Write the result of an ended item to a file, which appears once it is whole; return its length in bytes.

        Raises: OSError; as `get_result`.
        """
        return await save_chunks(self.get_result(run_id, item), path)

    async def steps(
        self,
        run_id: str,
        *,
        include_results: bool = False,
        page_size: int = 0,
        on_incomplete: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[RunStep, None]:
        """Yield the started steps, including steps of sub-runs. Raises: NotFound.

        `on_incomplete`: called with the reason if later steps are missing, because a later version wrote them.
        """
        request = runs_pb2.ListStepsRequest(
            run_id=run_id, include_results=include_results, value_form=JSON, page_size=page_size
        )
        async for reply in self._pages(lambda to: to.runs.ListSteps, request):
            for step in reply.steps:
                yield step_of(step)
            if reply.incomplete and on_incomplete is not None:
                on_incomplete(reply.incomplete)
                on_incomplete = None

    async def put_blob(self, content: bytes, *, blob_type: str = "data") -> str:
        """Store at most 16 MiB and return the blob id. Raises: Invalid (`PAYLOAD_TOO_LARGE`)."""
        if len(content) <= CHUNK_BYTES:
            request = blobs_pb2.PutBlobRequest(content=content, blob_type=blob_type)
            return str((await self._connection.call(lambda to: to.blobs.PutBlob, request)).blob_id)

        async def chunks() -> AsyncIterator[blobs_pb2.UploadBlobRequest]:
            for start in range(0, len(content), CHUNK_BYTES):
                yield blobs_pb2.UploadBlobRequest(chunk=content[start : start + CHUNK_BYTES], blob_type=blob_type)

        return str((await self._connection.call(lambda to: to.blobs.UploadBlob, chunks)).blob_id)

    async def get_blob(self, blob_id: str) -> tuple[bytes, str]:
        """Return content and type. Raises: NotFound, DataLoss."""
        reply = await self._connection.call(lambda to: to.blobs.GetBlob, blobs_pb2.GetBlobRequest(blob_id=blob_id))
        return reply.content, reply.blob_type

    async def components(self, plugin: str = "") -> list[Component]:
        """Return the components of the live hosts, with schemas."""
        request = components_pb2.ListComponentsRequest(plugin=plugin, include_schemas=True, value_form=JSON)
        reply = await self._connection.call(lambda to: to.components.ListComponents, request)
        return [component_of(component) for component in reply.components]

    async def cluster(self) -> ClusterInfo:
        """Return the live executors and hosts."""
        return cluster_of(
            await self._connection.call(lambda to: to.cluster.GetCluster, cluster_pb2.GetClusterRequest())
        )

    async def drain(self, *, executor_id: str = "", host_id: str = "") -> None:
        """Drain an executor or a host: no new work; return once the present work has finished.

        Raises: NotFound, FailedPrecondition, Unavailable; DeadlineExceeded (the drain continues: call again).
        """
        request = cluster_pb2.DrainRequest(**_target(executor_id, host_id))
        await self._connection.call(lambda to: to.cluster.Drain, request, timeout_s=DRAIN_TIMEOUT_S)

    async def undrain(self, *, executor_id: str = "", host_id: str = "") -> None:
        """End the drain of an executor or a host: it accepts new work again. Idempotent.

        Raises: NotFound, FailedPrecondition (`SERVICE_STOPPING`: the process ends), Unavailable.
        """
        request = cluster_pb2.UndrainRequest(**_target(executor_id, host_id))
        await self._connection.call(lambda to: to.cluster.Undrain, request)

    async def restart_plugin(self, plugin: str, *, host_id: str = "") -> list[HostRestart]:
        """Start the servers of a plugin again, on one host after another; calls in flight end in the former servers.

        Returns what happened on each host. Raises: NotFound (`PLUGIN_UNKNOWN`, `HOST_NOT_FOUND`), Unavailable;
        DeadlineExceeded (the restarts go on).
        """
        request = components_pb2.RestartPluginRequest(plugin=plugin, host_id=host_id)
        reply = await self._connection.call(
            lambda to: to.components.RestartPlugin, request, timeout_s=RESTART_TIMEOUT_S
        )
        return [HostRestart(host.host_id, host.outcome, host.detail) for host in reply.hosts]

    async def _pages(self, method: Callable[[Any], Any], request: Any) -> AsyncGenerator[Any, None]:
        """Yield the pages of a list; `request` is changed."""
        while True:
            reply = await self._connection.call(method, request)
            yield reply
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    async def _delete_idempotently(self, method: Callable[[Any], Any], request: Any) -> None:
        """Delete. NotFound on a retry means that an earlier attempt succeeded without a reply."""
        try:
            await self._connection.call(method, request)
        except NotFound as error:
            if error.details.get("tries") == 1:
                raise


def _target(executor_id: str, host_id: str) -> dict[str, str]:
    """Return the target of a drain, as members of its request."""
    if executor_id:
        return {"executor_id": executor_id}
    return {"host_id": host_id} if host_id else {}


def _submissions(runs: Iterable[runs_pb2.SubmitRunRequest]) -> Iterator[runs_pb2.SubmitRunsRequest]:
    """Divide submissions into calls, by number and by size."""
    request, size = runs_pb2.SubmitRunsRequest(), 0
    for run in runs:
        request.runs.append(run)
        size += run.ByteSize()
        if len(request.runs) == RUNS_PER_CALL or size >= UNARY_INPUTS_BYTES:
            yield request
            request, size = runs_pb2.SubmitRunsRequest(), 0
    if request.runs:
        yield request


async def _for_old_server(batch: BatchInputs) -> list[bytes]:
    """Return the inputs for a server that receives batches in one message only. Raises: FailedPrecondition."""
    texts = await batch.up_to(OLD_BATCH_BYTES_MAX)
    if texts is None:
        raise FailedPrecondition(
            "CALL_UNKNOWN",
            f"the server is of an earlier version, which receives batches of up to {OLD_BATCH_BYTES_MAX:,} bytes; "
            "update the control planes of the mesh, or submit several batches",
        )
    return texts


def _submitted(outcome: runs_pb2.SubmitOutcome) -> str | StepflowError:
    from stepflow.rpc.errors import family
    from stepflow.rpc.findings import findings_tree

    if not outcome.HasField("rejection"):
        return outcome.run_id

    rejection = outcome.rejection
    details: dict[str, Any] = {"retry_after_ms": rejection.retry_after_ms} if rejection.retry_after_ms else {}
    if rejection.diagnostics:
        details["diagnostics"] = findings_tree(flows_pb2.FlowFindings(diagnostics=rejection.diagnostics))
    return family(rejection.status)(rejection.reason, rejection.message, **details)
