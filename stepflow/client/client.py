"""The client for asyncio programs. Each method is one call of the API, or the pages of one list."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import grpc

from stepflow import codec
from stepflow.client.connection import CALL_TIMEOUT_S, Connection
from stepflow.client.model import (
    StoredFlow,
    cluster_of,
    component_of,
    diagnostic_of,
    event_of,
    flow_info_of,
    item_of,
    run_of,
    step_of,
)
from stepflow.errors import Invalid, NotFound, StepflowError, Unavailable
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import blobs_pb2, cluster_pb2, components_pb2, flows_pb2, retry_pb2, runs_pb2, values_pb2
from stepflow.retry import backoff_from_tree, backoff_to_proto

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
    from types import TracebackType

    from stepflow.client.model import Cluster, Component, Diagnostic, Event, FlowInfo, Item, Run, Step
    from stepflow.rpc.tls import Tls

WAIT_SLICE_S = 30.0
"""A long wait is made of calls of this length, so that a connection that died silently is noticed."""

DRAIN_TIMEOUT_S = 75.0
"""Longer than the server's own patience, which it tells of."""

RUNS_PER_CALL = 200
CHUNK_BYTES = 1024 * 1024
JSON = values_pb2.VALUE_FORM_JSON

_FLOW_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Named:
    """A stored flow by name; without a label, its newest version."""

    name: str
    label: str = ""


Document: TypeAlias = Mapping[str, Any] | Path | bytes
"""A flow itself: its tree, its file (YAML or JSON), or its text in JSON."""

FlowLike: TypeAlias = Document | Named | str
"""A flow, or which stored one: an id, a name, or `name@label`."""


class Client:
    """See `stepflow.client`. Close it, or use it with `async with`; belongs to one event loop."""

    def __init__(self, server: str | None = None, *, tls: Tls | None = None, patience_s: float = 10.0) -> None:
        """`server`: HOST:PORT, several with commas, or a target of gRPC such as `dns:///mesh:7840`; by default what
        `STEPFLOW_SERVER` says, else localhost:7840. Calls are repeated for `patience_s` while no server answers.

        Raises: Invalid (`SERVER_INVALID`).
        """
        self._connection = Connection(server, tls, patience_s)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls still in flight end with an error. Safe to repeat."""
        await self._connection.close()

    # --- flows ------------------------------------------------------------------------------------------------------

    async def store_flow(self, flow: Document, *, label: str = "") -> StoredFlow:
        """Store a flow, and give its version a label. Raises: Invalid (`FLOW_INVALID`, what the parser says)."""
        request = flows_pb2.StoreFlowRequest(document=_document(flow), label=label)
        reply = await self._connection.call(lambda to: to.flows.StoreFlow, request)
        return StoredFlow(reply.flow_id, reply.version, [diagnostic_of(found) for found in reply.diagnostics])

    async def validate_flow(self, flow: Document) -> list[Diagnostic]:
        """Return what validation has to say, fatal or not. Raises: Invalid, what cannot be read as a flow."""
        request = flows_pb2.StoreFlowRequest(document=_document(flow), validate_only=True)
        reply = await self._connection.call(lambda to: to.flows.StoreFlow, request)
        return [diagnostic_of(found) for found in reply.diagnostics]

    async def get_flow(self, flow: Named | str) -> tuple[str, dict[str, Any]]:
        """Return id and document. Raises: NotFound."""
        request = flows_pb2.GetFlowRequest(flow=_reference(flow), value_form=JSON)
        reply = await self._connection.call(lambda to: to.flows.GetFlow, request)
        return reply.flow_id, codec.decode(reply.document.json)

    async def list_flows(self, name_prefix: str = "") -> AsyncGenerator[FlowInfo, None]:
        """Yield the named flows in the order of their names."""
        request = flows_pb2.ListFlowsRequest(name_prefix=name_prefix)
        async for reply in self._pages(lambda to: to.flows.ListFlows, request):
            for flow in reply.flows:
                yield flow_info_of(flow)

    async def delete_flow(self, name: str, *, label: str = "") -> None:
        """Forget a name, or one label of it. Raises: NotFound."""
        request = flows_pb2.DeleteFlowRequest(name=name, label=label)
        await self._once_gone(lambda to: to.flows.DeleteFlow, request)

    # --- runs -------------------------------------------------------------------------------------------------------

    async def submit(self, flow: FlowLike, input: Any = None, **options: Any) -> str:
        """Begin a run of one item and return its id; `options` as for `submit_batch`."""
        return await self.submit_batch(flow, [input], **options)

    async def submit_batch(
        self,
        flow: FlowLike,
        inputs: Sequence[Any],
        *,
        run_id: str | None = None,
        variables: Mapping[str, Any] | None = None,
        overrides: Any = None,
        concurrency_max: int | None = None,
        check_input: bool = True,
        labels: Mapping[str, Any] | None = None,
        retry: Mapping[str, Any] | None = None,
    ) -> str:
        """Begin a run with one item for each input and return its id. However often the call has to be repeated, one
        run is made; bring a `run_id` (a UUID) of your own to be sure of that over a restart of your program too.

        `retry` is what a configuration has under that name; what it leaves out is as the mesh has it.

        Raises: Invalid, NotFound, Exists (`RUN_EXISTS`), Overloaded.
        """
        request = _submission(
            flow,
            inputs,
            run_id,
            variables,
            overrides,
            concurrency_max,
            check_input=check_input,
            labels=labels,
            retry=retry,
        )
        reply = await self._connection.call(lambda to: to.runs.SubmitRun, request)
        return str(reply.run_id)

    async def submit_runs(self, flow: FlowLike, inputs: Iterable[Any], **options: Any) -> list[str | StepflowError]:
        """Begin a run of its own for each input; `options` as for `submit_batch`, without `run_id`.

        Return, in order, the run ids, or why a run was not begun.
        """
        requests = [_submission(flow, [value], None, **options) for value in inputs]
        outcomes: list[str | StepflowError] = []
        for start in range(0, len(requests), RUNS_PER_CALL):
            request = runs_pb2.SubmitRunsRequest(runs=requests[start : start + RUNS_PER_CALL])
            reply = await self._connection.call(lambda to: to.runs.SubmitRuns, request)
            outcomes += [_submitted(outcome) for outcome in reply.outcomes]
        return outcomes

    async def get(self, run_id: str) -> Run:
        """Raises: NotFound."""
        reply = await self._connection.call(lambda to: to.runs.GetRun, runs_pb2.GetRunRequest(run_id=run_id))
        return run_of(reply.run)

    async def wait(self, run_id: str, *, timeout_s: float | None = None) -> Run:
        """Return the run once it has ended, or as it is after the time-out (`Run.ended` says which).

        Raises: NotFound.
        """
        left_s = timeout_s
        while True:
            slice_s = WAIT_SLICE_S if left_s is None else min(WAIT_SLICE_S, left_s)
            request = runs_pb2.WaitRunRequest(run_id=run_id, timeout_ms=max(1, int(slice_s * 1000)))
            reply = await self._connection.call(lambda to: to.runs.WaitRun, request, timeout_s=slice_s + CALL_TIMEOUT_S)
            run = run_of(reply.run)
            left_s = None if left_s is None else left_s - slice_s
            if run.ended or (left_s is not None and left_s <= 0):
                return run

    def watch(self, run_id: str, *, positions: Mapping[int, int] | None = None, include_results: bool = False) -> Watch:
        """Follow a run: `async for event in client.watch(run_id)`, from its beginning to its end, also over servers
        that die. `positions` of a former `Watch` go on where that one was.
        """
        return Watch(self._connection, run_id, dict(positions or {}), include_results=include_results)

    async def list_runs(
        self,
        *,
        statuses: Iterable[str] = (),
        flow_name: str = "",
        created_since_ms: int = 0,
        page_size: int = 0,
    ) -> AsyncGenerator[Run, None]:
        """Yield runs, the newest first; `statuses` are names such as `failed`. Raises: Invalid (`STATUS_INVALID`)."""
        request = runs_pb2.ListRunsRequest(flow_name=flow_name, created_since_ms=created_since_ms, page_size=page_size)
        for status in statuses:
            try:
                request.statuses.append(f"RUN_STATUS_{status.upper()}")  # type: ignore[arg-type]  # names are taken too
            except ValueError:
                raise Invalid("STATUS_INVALID", f"{status!r} is not a status of runs") from None
        async for reply in self._pages(lambda to: to.runs.ListRuns, request):
            for run in reply.runs:
                yield run_of(run)

    async def cancel(self, run_id: str) -> Run:
        """Ask for the run's end and return it as it is now. Raises: NotFound."""
        reply = await self._connection.call(lambda to: to.runs.CancelRun, runs_pb2.CancelRunRequest(run_id=run_id))
        return run_of(reply.run)

    async def signal(
        self, run_id: str, name: str, payload: Any = None, *, item: int = 0, signal_id: str | None = None
    ) -> str:
        """Send a run a signal, for a step of `/builtin/wait_for_signal` in this item; return the signal's id.

        However often the call has to be repeated, it is one signal; bring a `signal_id` (a UUID) of your own to be sure
        of that over a restart of your program too. Raises: NotFound, Invalid, Refused (`RUN_ENDED`), Overloaded.
        """
        request = runs_pb2.SignalRunRequest(
            run_id=run_id,
            name=name,
            payload=_value(payload, "the payload"),
            item=item,
            signal_id=signal_id or str(uuid4()),
        )
        return str((await self._connection.call(lambda to: to.runs.SignalRun, request)).signal_id)

    async def delete(self, run_id: str) -> None:
        """Remove a run that has ended. Raises: NotFound, Refused (`RUN_NOT_ENDED`)."""
        await self._once_gone(lambda to: to.runs.DeleteRun, runs_pb2.DeleteRunRequest(run_id=run_id))

    async def items(self, run_id: str, *, page_size: int = 0) -> AsyncGenerator[Item, None]:
        """Yield the items of a run in order. Raises: NotFound."""
        request = runs_pb2.ListItemsRequest(run_id=run_id, value_form=JSON, page_size=page_size)
        async for reply in self._pages(lambda to: to.runs.ListItems, request):
            for item in reply.items:
                yield item_of(item)

    async def steps(
        self, run_id: str, *, include_results: bool = False, page_size: int = 0
    ) -> AsyncGenerator[Step, None]:
        """Yield the steps that have begun, those of sub-runs too. Raises: NotFound."""
        request = runs_pb2.ListStepsRequest(
            run_id=run_id, include_results=include_results, value_form=JSON, page_size=page_size
        )
        async for reply in self._pages(lambda to: to.runs.ListSteps, request):
            for step in reply.steps:
                yield step_of(step)

    # --- blobs ------------------------------------------------------------------------------------------------------

    async def put_blob(self, content: bytes, *, blob_type: str = "data") -> str:
        """Store a content of at most 16 MiB and return its id. Raises: Invalid (`PAYLOAD_TOO_LARGE`)."""
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

    # --- the mesh ---------------------------------------------------------------------------------------------------

    async def components(self, plugin: str = "") -> list[Component]:
        """Return what the live hosts offer, with schemas."""
        request = components_pb2.ListComponentsRequest(plugin=plugin, include_schemas=True, value_form=JSON)
        reply = await self._connection.call(lambda to: to.components.ListComponents, request)
        return [component_of(component) for component in reply.components]

    async def cluster(self) -> Cluster:
        """Say who is there."""
        return cluster_of(
            await self._connection.call(lambda to: to.cluster.GetCluster, cluster_pb2.GetClusterRequest())
        )

    async def drain(self, *, executor_id: str = "", host_id: str = "") -> None:
        """Have an executor, or a host, finish and take nothing new; return when it has finished.

        Raises: NotFound, Refused, Unavailable; Deadline, it goes on with that: ask again.
        """
        request = cluster_pb2.DrainRequest()
        if executor_id:
            request.executor_id = executor_id
        elif host_id:
            request.host_id = host_id
        await self._connection.call(lambda to: to.cluster.Drain, request, timeout_s=DRAIN_TIMEOUT_S)

    # --- helpers ----------------------------------------------------------------------------------------------------

    async def _pages(self, method: Callable[[Any], Any], request: Any) -> AsyncGenerator[Any, None]:
        while True:
            reply = await self._connection.call(method, request)
            yield reply
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    async def _once_gone(self, method: Callable[[Any], Any], request: Any) -> None:
        """Delete something: gone at the second try means that the first one did it."""
        try:
            await self._connection.call(method, request)
        except NotFound as error:
            if error.details.get("tries") == 1:
                raise


class Watch:
    """A run's events. `positions` says how far they were taken: partition → seq, fit for `Client.watch`.

    Durable events come exactly once, also when the connection is cut; `step_started` and `step_progress` may get lost.
    A program that stops in the middle of an iteration and goes on from `positions` sees the last moment's events again.
    """

    def __init__(
        self, connection: Connection, run_id: str, positions: dict[int, int], *, include_results: bool
    ) -> None:
        self.positions = positions
        self._connection = connection
        self._run_id = run_id
        self._include_results = include_results
        self._iterator: AsyncGenerator[Event, None] | None = None

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Event:
        """Raises: NotFound, Refused (`HISTORY_GONE`), Unavailable when no server has answered for long."""
        if self._iterator is None:
            self._iterator = self._events()
        return await self._iterator.__anext__()

    async def aclose(self) -> None:
        """Stop following. Safe to repeat."""
        if self._iterator is not None:
            await self._iterator.aclose()

    async def _events(self) -> AsyncGenerator[Event, None]:
        patience = self._connection.patience()
        while True:
            call = self._connection.endpoint().runs.WatchRun(self._request())
            try:
                async for message in call:
                    patience.renew()
                    for event in message.events:
                        known = event_of(self._run_id, event)
                        if known is not None:
                            yield known
                        if event.HasField("run_ended"):
                            return
                    if message.HasField("position"):
                        self.positions[message.position.partition] = message.position.seq
            except grpc.aio.AioRpcError as failed:
                error = self._connection.explain(failed)
                if not isinstance(error, Unavailable):
                    raise error from None
                await patience.wait(error, len(self._connection.targets))
            finally:
                call.cancel()

    def _request(self) -> runs_pb2.WatchRunRequest:
        positions = [runs_pb2.Position(partition=p, seq=seq) for p, seq in self.positions.items()]
        return runs_pb2.WatchRunRequest(
            run_id=self._run_id, positions=positions, include_results=self._include_results, value_form=JSON
        )


def _value(value: Any, what: str) -> values_pb2.Value:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid("VALUE_INVALID", f"{what} is not JSON: {error}") from None
    return values_pb2.Value(json=text)


def _document(flow: Document) -> values_pb2.Value:
    if isinstance(flow, bytes):
        return values_pb2.Value(json=flow)
    if isinstance(flow, Path):
        return _file(flow)
    return _value(flow, "the flow")


def _file(path: Path) -> values_pb2.Value:
    """Read and check a flow file: what is wrong with it is told with line and column."""
    from stepflow.flow import flow_bytes, parse_flow

    try:
        text = path.read_bytes()
    except OSError as error:
        raise NotFound("FILE_NOT_FOUND", f"cannot read {path}: {error.strerror}", path=str(path)) from None
    flow = parse_flow(text, source=str(path), format="json" if path.suffix == ".json" else "yaml")
    return values_pb2.Value(json=flow_bytes(flow))


def _reference(flow: FlowLike) -> flows_pb2.FlowReference:
    if isinstance(flow, Named):
        return flows_pb2.FlowReference(named=flows_pb2.NamedFlow(name=flow.name, label=flow.label))
    if not isinstance(flow, str):
        return flows_pb2.FlowReference(document=_document(flow))
    if _FLOW_ID.fullmatch(flow):
        return flows_pb2.FlowReference(flow_id=flow)
    name, separator, label = flow.rpartition("@")
    named = flows_pb2.NamedFlow(name=name, label=label) if separator else flows_pb2.NamedFlow(name=flow)
    return flows_pb2.FlowReference(named=named)


def _submission(
    flow: FlowLike,
    inputs: Sequence[Any],
    run_id: str | None,
    variables: Mapping[str, Any] | None = None,
    overrides: Any = None,
    concurrency_max: int | None = None,
    *,
    check_input: bool = True,
    labels: Mapping[str, Any] | None = None,
    retry: Mapping[str, Any] | None = None,
) -> runs_pb2.SubmitRunRequest:
    request = runs_pb2.SubmitRunRequest(
        run_id=run_id or new_run_id(),
        flow=_reference(flow),
        inputs=[_value(value, f"input {index}") for index, value in enumerate(inputs)],
        concurrency_max=concurrency_max or 0,
        input_unchecked=not check_input,
    )
    for name, value in (variables or {}).items():
        request.variables[name].CopyFrom(_value(value, f"variable {name}"))
    if overrides is not None:
        request.overrides.CopyFrom(_value(overrides, "overrides"))
    try:
        request.labels.update(dict(labels or {}))
    except ValueError as error:
        raise Invalid("LABELS_INVALID", f"labels are not JSON: {error}") from None
    if retry is not None:
        request.retry.CopyFrom(_retry(retry))
    return request


def _retry(tree: Mapping[str, Any]) -> retry_pb2.RetryPolicy:
    policy = retry_pb2.RetryPolicy()
    for name, value in tree.items():
        if name == "backoff":
            policy.backoff.CopyFrom(backoff_to_proto(backoff_from_tree(value)))
        elif name == "transportMaxRetries" and type(value) is int and 0 <= value < 2**32:
            policy.transport_retries_max = value
        else:
            raise Invalid(
                "RETRY_INVALID", f"retry has `transportMaxRetries`, a count, and `backoff`; not {name!r}: {value!r}"
            )
    return policy


def _submitted(outcome: runs_pb2.SubmitOutcome) -> str | StepflowError:
    from stepflow.rpc.errors import family

    if not outcome.HasField("rejection"):
        return outcome.run_id
    rejection = outcome.rejection
    return family(rejection.status)(rejection.reason, rejection.message)
