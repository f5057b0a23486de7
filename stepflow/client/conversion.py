"""Decoding: messages of the API to the client's data (`model`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.client.model import (
    QUEUED,
    ClientEvent,
    ClusterInfo,
    Component,
    ExecutorInfo,
    FlowDiagnostic,
    FlowInfo,
    FlowVersion,
    HostInfo,
    PluginInfo,
    Run,
    RunItem,
    RunStep,
    StoreInfo,
)
from stepflow.codec import decode
from stepflow.errors import Code, Failure
from stepflow.log_lines import lines_from_pb
from stepflow.mesh.v1 import flows_pb2, journal_pb2

if TYPE_CHECKING:
    from google.protobuf import struct_pb2

    from stepflow.client.model import EventKind
    from stepflow.mesh.v1 import cluster_pb2, components_pb2, runs_pb2


def diagnostic_of(message: flows_pb2.FlowDiagnostic) -> FlowDiagnostic:
    level = _enum_name(flows_pb2.FlowDiagnostic.Level, message.level, "LEVEL_")
    data = decode(message.data_json) if message.data_json else {}
    return FlowDiagnostic(message.code, message.kind, level, message.message, message.path, message.experimental, data)


def flow_info_of(message: flows_pb2.NamedFlowVersions) -> FlowInfo:
    versions = [FlowVersion(v.flow_id, v.version, list(v.labels), v.stored_at_ms) for v in message.versions]
    return FlowInfo(message.name, versions)


def status_of(number: journal_pb2.RunStatus) -> str:
    return _enum_name(journal_pb2.RunStatus, number, "RUN_STATUS_")


def _enum_name(enum: Any, number: int, prefix: str) -> str:
    """Return the name without its prefix; a server of a later version may send numbers without a name here."""
    try:
        name: str = enum.Name(number)
    except ValueError:
        return f"unknown ({number})"
    return name.removeprefix(prefix).lower()


def run_of(message: runs_pb2.Run) -> Run:
    return Run(
        run_id=message.run_id,
        flow_id=message.flow_id,
        flow_name=message.flow_name,
        status=QUEUED if message.queued_reason else status_of(message.status),
        items_total=message.items_total,
        items_completed=message.items_completed,
        items_failed=message.items_failed,
        items_cancelled=message.items_cancelled,
        created_at_ms=message.created_at_ms,
        completed_at_ms=message.completed_at_ms or None,
        labels={name: _tree(member) for name, member in message.labels.fields.items()},
        queued_reason=message.queued_reason,
        paused_ms=message.paused_ms,
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


def _outcome_of(message: runs_pb2.Outcome) -> dict[str, Any]:
    """Return an outcome as members of the data that has one."""
    failure = failure_of(message.failure) if message.HasField("failure") else None
    return {"raw": message.result.json, "failure": failure, "result_bytes": message.result_bytes}


def item_of(message: runs_pb2.Item) -> RunItem:
    return RunItem(
        item=message.item,
        status=status_of(message.status),
        completed_at_ms=message.completed_at_ms or None,
        **_outcome_of(message.outcome),
    )


def step_of(message: runs_pb2.StepSummary) -> RunStep:
    step = message.step

    return RunStep(
        run_id=step.run_id,
        item=step.item,
        step_id=step.step_id,
        step_index=step.step_index,
        component=step.component,
        depth=step.depth,
        status=status_of(message.status),
        attempt=message.attempt,
        retries=message.retries,
        started_at_ms=message.started_at_ms or None,
        completed_at_ms=message.completed_at_ms or None,
        duration_ms=_step_duration_ms(message),
        path=step.path,
        skipped_for=message.failed_step_id,
        **_outcome_of(message.outcome),
    )


def _step_duration_ms(step: runs_pb2.StepSummary) -> int | None:
    if step.HasField("duration_ms"):
        return step.duration_ms
    # A control plane of an earlier version reports two instants only, possibly of two clocks.
    ended = step.started_at_ms and step.completed_at_ms
    return max(0, step.completed_at_ms - step.started_at_ms) if ended else None


def event_of(run_id: str, message: runs_pb2.RunEvent) -> ClientEvent | None:
    """Decode an event; None for a kind unknown to this version of the client."""
    at_ms = message.at_ms

    match message.WhichOneof("kind"):
        case "run_adopted":
            return ClientEvent("run_adopted", at_ms, run_id, executor_id=message.run_adopted.executor_id)

        case "step_started":
            return _step_event("step_started", at_ms, message.step_started)

        case "step_progress":
            progress = message.step_progress
            facts: dict[str, Any] = {"message": progress.message, "done": progress.done, "total": progress.total}
            return _step_event("step_progress", at_ms, progress, **facts)

        case "step_logged":
            logged = message.step_logged
            facts = {"lines": lines_from_pb(logged.lines), "dropped": logged.dropped}
            return _step_event("step_logged", at_ms, logged, **facts)

        case "step_ended":
            ended = message.step_ended
            kind: EventKind = "step_failed" if ended.failed else "step_completed"
            facts = {"duration_ms": ended.duration_ms, "lines": lines_from_pb(ended.log_tail)}
            return _step_event(kind, at_ms, ended, **facts, **_outcome_of(ended.outcome))

        case "step_skipped":
            skipped = message.step_skipped
            failure = failure_of(skipped.failure)
            return _step_event("step_skipped", at_ms, skipped, failure=failure, message=skipped.failed_step_id)

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
            kind = "item_failed" if item.failed else "item_completed"
            return ClientEvent(kind, at_ms, run_id, item=item.item, **_outcome_of(item.outcome))

        case "run_cancel_requested":
            return ClientEvent("cancel_requested", at_ms, run_id)

        case "run_signalled":
            signalled = message.run_signalled
            return ClientEvent("signalled", at_ms, run_id, item=signalled.item, message=signalled.signal)

        case "history_incomplete":
            return ClientEvent("history_incomplete", at_ms, run_id, message=message.history_incomplete.reason)

        case "run_ended":
            return ClientEvent("run_ended", at_ms, run_id, run=run_of(message.run_ended.run))

        case _:
            return None


def _step_event(kind: EventKind, at_ms: int, body: Any, **members: Any) -> ClientEvent:
    """Build the event of a step; `body` is the kind's message."""
    step: runs_pb2.StepPlace = body.step
    parent = step.parent

    return ClientEvent(
        kind,
        at_ms,
        step.run_id,
        item=step.item,
        step_id=step.step_id,
        step_index=step.step_index,
        component=step.component,
        depth=step.depth,
        parent=(parent.run_id, parent.item, parent.step_index) if step.HasField("parent") else None,
        attempt=getattr(body, "attempt", 0),
        path=step.path,
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


def cluster_of(message: cluster_pb2.GetClusterResponse) -> ClusterInfo:
    return ClusterInfo(
        leader_id=message.leader_id,
        control_plane_id=message.control_plane_id,
        executors=[
            ExecutorInfo(
                e.executor_id,
                e.address,
                e.runs,
                e.runs_max,
                e.engine_version,
                e.draining,
                e.blob_error,
                value_bytes_max=e.value_bytes_max,
                value_waiting=e.value_waiting,
            )
            for e in message.executors
        ],
        hosts=[
            HostInfo(
                host.host_id,
                host.address,
                host.capacity,
                host.draining,
                [PluginInfo(p.plugin, p.type, p.state, p.last_error, p.components, p.restarts) for p in host.plugins],
                host.blob_error,
                host.pool,
                value_bytes_max=host.value_bytes_max,
                value_waiting=host.value_waiting,
            )
            for host in message.hosts
        ],
        runs_pending=message.runs_pending,
        obstacles=list(message.obstacles),
        warnings=list(message.warnings),
        value_bytes_max=message.value_bytes_max,
        value_waiting=message.value_waiting,
        store=_store_of(message.store) if message.HasField("store") else None,
    )


def _store_of(message: cluster_pb2.StoreInfo) -> StoreInfo:
    return StoreInfo(
        message.bytes_in_use,
        message.bytes_allocated,
        message.quota_bytes,
        message.bytes_in_per_s,
        message.bytes_out_per_s,
        message.runs_in_per_s,
        message.runs_out_per_s,
        message.packing_lag_ms,
        message.segments,
        message.packed_runs,
        message.packed_bytes,
        message.inline_bytes_max,
        message.runs_per_s_max if message.HasField("runs_per_s_max") else None,
        list(message.slowed),
    )
