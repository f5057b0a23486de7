"""What the client gives: plain data, made from the messages of the API. Times are milliseconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stepflow.codec import decode
from stepflow.errors import Code, Failure
from stepflow.mesh.v1 import flows_pb2, journal_pb2

if TYPE_CHECKING:
    from google.protobuf import struct_pb2

    from stepflow.mesh.v1 import cluster_pb2, components_pb2, runs_pb2

EventKind = Literal[
    "run_adopted",
    "step_started",
    "step_progress",
    "step_completed",
    "step_failed",
    "step_retrying",
    "step_sleeping",
    "step_waiting",
    "sub_run_opened",
    "item_completed",
    "item_failed",
    "cancel_requested",
    "signalled",
    "run_ended",
]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A finding of validation. `level`: warning, error (steps will fail) or fatal (the flow cannot run)."""

    code: int
    kind: str
    level: str
    message: str
    path: str


@dataclass(frozen=True, slots=True)
class StoredFlow:
    """`version` is the place among the versions of the flow's name, from 1; 0 without a name."""

    flow_id: str
    version: int
    diagnostics: list[Diagnostic]


@dataclass(frozen=True, slots=True)
class FlowVersion:
    flow_id: str
    version: int
    labels: list[str]
    stored_at_ms: int


@dataclass(frozen=True, slots=True)
class FlowInfo:
    """A named flow; its versions, the oldest first."""

    name: str
    versions: list[FlowVersion]


@dataclass(frozen=True, slots=True)
class Run:
    """`status`: running, completed, failed, cancelled or recovery_failed."""

    run_id: str
    flow_id: str
    flow_name: str
    status: str
    items_total: int
    items_completed: int
    items_failed: int
    items_cancelled: int
    created_at_ms: int
    completed_at_ms: int | None
    labels: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.status != "running"


@dataclass(frozen=True, slots=True)
class Item:
    """One input's outcome. `raw` is the result as compact JSON, empty while it runs and when it failed."""

    item: int
    status: str
    raw: bytes
    failure: Failure | None
    completed_at_ms: int | None

    @property
    def result(self) -> Any:
        """The result as a tree; None while it runs and when it failed."""
        return decode(self.raw) if self.raw else None


@dataclass(frozen=True, slots=True)
class Step:
    """A step that has begun. `status`: running, completed or failed. `raw`: its result, when it was asked for."""

    run_id: str
    item: int
    step_id: str
    step_index: int
    component: str
    depth: int
    status: str
    attempt: int
    retries: int
    started_at_ms: int | None
    completed_at_ms: int | None
    raw: bytes
    failure: Failure | None

    @property
    def result(self) -> Any:
        return decode(self.raw) if self.raw else None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run. Which members are set depends on `kind`; the others are empty.

    `run_id` is a sub-run's for its steps. `raw` is a result, when results were asked for; `until_ms` the end of a sleep
    or the time of the next attempt. `run` comes with the last event, `run_ended`.
    """

    kind: EventKind
    at_ms: int
    run_id: str
    item: int = 0
    step_id: str = ""
    step_index: int = 0
    component: str = ""
    depth: int = 0
    parent: tuple[str, int, int] | None = None
    """Of a step in a sub-run: run id, item and step index of the step that opened it."""
    attempt: int = 0
    duration_ms: int = 0
    until_ms: int | None = None
    message: str = ""
    raw: bytes = b""
    failure: Failure | None = None
    sub_run_id: str = ""
    executor_id: str = ""
    run: Run | None = None

    @property
    def result(self) -> Any:
        return decode(self.raw) if self.raw else None


@dataclass(frozen=True, slots=True)
class Component:
    """Something that a step can call. Schemas are trees, None where the server gives none."""

    plugin: str
    component: str
    path: str
    description: str
    input_schema: Any
    output_schema: Any
    host_ids: list[str]


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    executor_id: str
    address: str
    runs: int
    runs_max: int
    engine_version: int
    draining: bool


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """`state`: starting, ready, restarting or failed. `last_error`: why it did not start, or how its server ended."""

    plugin: str
    type: str
    state: str
    last_error: str
    components: int
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class HostInfo:
    host_id: str
    address: str
    capacity: int
    draining: bool
    plugins: list[PluginInfo]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who is there. `leader_id` is empty while no control plane leads."""

    leader_id: str
    control_plane_id: str
    executors: list[ExecutorInfo]
    hosts: list[HostInfo]
    runs_pending: int


# --- from messages ------------------------------------------------------------------------------------------------


def diagnostic_of(message: flows_pb2.FlowDiagnostic) -> Diagnostic:
    level = flows_pb2.FlowDiagnostic.Level.Name(message.level).removeprefix("LEVEL_").lower()
    return Diagnostic(message.code, message.kind, level, message.message, message.path)


def flow_info_of(message: flows_pb2.NamedFlowVersions) -> FlowInfo:
    versions = [FlowVersion(v.flow_id, v.version, list(v.labels), v.stored_at_ms) for v in message.versions]
    return FlowInfo(message.name, versions)


def status_of(number: journal_pb2.RunStatus) -> str:
    return journal_pb2.RunStatus.Name(number).removeprefix("RUN_STATUS_").lower()


def run_of(message: runs_pb2.Run) -> Run:
    return Run(
        run_id=message.run_id,
        flow_id=message.flow_id,
        flow_name=message.flow_name,
        status=status_of(message.status),
        items_total=message.items_total,
        items_completed=message.items_completed,
        items_failed=message.items_failed,
        items_cancelled=message.items_cancelled,
        created_at_ms=message.created_at_ms,
        completed_at_ms=message.completed_at_ms or None,
        labels={name: _tree(member) for name, member in message.labels.fields.items()},
    )


def _tree(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return {name: _tree(member) for name, member in value.struct_value.fields.items()}
        case "list_value":
            return [_tree(element) for element in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < 2**63 else number
        case "null_value" | None:
            return None
        case kind:
            return getattr(value, kind)


def failure_of(message: runs_pb2.FailedOutcome) -> Failure:
    return Failure(Code(message.code), message.message, message.data.json)


def _outcome_of(message: runs_pb2.Outcome) -> tuple[bytes, Failure | None]:
    if message.HasField("failure"):
        return b"", failure_of(message.failure)
    return message.result.json, None


def item_of(message: runs_pb2.Item) -> Item:
    raw, failure = _outcome_of(message.outcome)
    return Item(message.item, status_of(message.status), raw, failure, message.completed_at_ms or None)


def step_of(message: runs_pb2.StepSummary) -> Step:
    raw, failure = _outcome_of(message.outcome)
    place = message.step
    return Step(
        run_id=place.run_id,
        item=place.item,
        step_id=place.step_id,
        step_index=place.step_index,
        component=place.component,
        depth=place.depth,
        status=status_of(message.status),
        attempt=message.attempt,
        retries=message.retries,
        started_at_ms=message.started_at_ms or None,
        completed_at_ms=message.completed_at_ms or None,
        raw=raw,
        failure=failure,
    )


def event_of(run_id: str, message: runs_pb2.RunEvent) -> Event | None:
    """Return an event; None for a kind that this client does not know."""
    at_ms = message.at_ms
    match message.WhichOneof("kind"):
        case "run_adopted":
            return Event("run_adopted", at_ms, run_id, executor_id=message.run_adopted.executor_id)
        case "step_started":
            return _step_event("step_started", at_ms, message.step_started)
        case "step_progress":
            return _step_event("step_progress", at_ms, message.step_progress, message=message.step_progress.message)
        case "step_ended":
            ended = message.step_ended
            raw, failure = _outcome_of(ended.outcome)
            kind: EventKind = "step_failed" if ended.failed else "step_completed"
            return _step_event(kind, at_ms, ended, duration_ms=ended.duration_ms, raw=raw, failure=failure)
        case "step_retrying":
            retrying = message.step_retrying
            failure = failure_of(retrying.failure)
            return _step_event("step_retrying", at_ms, retrying, failure=failure, until_ms=retrying.retry_at_ms)
        case "step_sleeping":
            return _step_event("step_sleeping", at_ms, message.step_sleeping, until_ms=message.step_sleeping.until_ms)
        case "step_waiting":
            waiting = message.step_waiting
            until_ms = waiting.until_ms or None
            return _step_event("step_waiting", at_ms, waiting, until_ms=until_ms, message=waiting.signal)
        case "sub_run_opened":
            opened = message.sub_run_opened
            return _step_event("sub_run_opened", at_ms, opened, sub_run_id=opened.sub_run_id)
        case "item_ended":
            item = message.item_ended
            raw, failure = _outcome_of(item.outcome)
            kind = "item_failed" if item.failed else "item_completed"
            return Event(kind, at_ms, run_id, item=item.item, raw=raw, failure=failure)
        case "run_cancel_requested":
            return Event("cancel_requested", at_ms, run_id)
        case "run_signalled":
            signalled = message.run_signalled
            return Event("signalled", at_ms, run_id, item=signalled.item, message=signalled.signal)
        case "run_ended":
            return Event("run_ended", at_ms, run_id, run=run_of(message.run_ended.run))
        case _:
            return None


def _step_event(kind: EventKind, at_ms: int, about: Any, **members: Any) -> Event:
    place: runs_pb2.StepPlace = about.step
    parent = place.parent
    return Event(
        kind,
        at_ms,
        place.run_id,
        item=place.item,
        step_id=place.step_id,
        step_index=place.step_index,
        component=place.component,
        depth=place.depth,
        parent=(parent.run_id, parent.item, parent.step_index) if place.HasField("parent") else None,
        attempt=getattr(about, "attempt", 0),
        **members,
    )


def component_of(message: components_pb2.Component) -> Component:
    return Component(
        plugin=message.plugin,
        component=message.component,
        path=message.path,
        description=message.description,
        input_schema=decode(message.input_schema.json) if message.HasField("input_schema") else None,
        output_schema=decode(message.output_schema.json) if message.HasField("output_schema") else None,
        host_ids=list(message.host_ids),
    )


def cluster_of(message: cluster_pb2.GetClusterResponse) -> Cluster:
    return Cluster(
        leader_id=message.leader_id,
        control_plane_id=message.control_plane_id,
        executors=[
            ExecutorInfo(e.executor_id, e.address, e.runs, e.runs_max, e.engine_version, e.draining)
            for e in message.executors
        ],
        hosts=[
            HostInfo(
                host.host_id,
                host.address,
                host.capacity,
                host.draining,
                [PluginInfo(p.plugin, p.type, p.state, p.last_error, p.components, p.restarts) for p in host.plugins],
            )
            for host in message.hosts
        ],
        runs_pending=message.runs_pending,
    )
