"""Results of the client: plain data. Times are milliseconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stepflow.codec import PAYLOAD_BYTES_MAX, decode
from stepflow.errors import FailedPrecondition

if TYPE_CHECKING:
    from stepflow.errors import Failure
    from stepflow.log_lines import LogLine

QUEUED = "queued"
"""Status of a run that lacks an executor or a host. On the wire it is a running run with a reason."""

EventKind = Literal[
    "run_adopted",
    "step_started",
    "step_progress",
    "step_logged",
    "step_completed",
    "step_failed",
    "step_skipped",
    "step_retrying",
    "step_sleeping",
    "step_waiting",
    "sub_run_opened",
    "item_completed",
    "item_failed",
    "cancel_requested",
    "signalled",
    "history_incomplete",
    "run_ended",
]


@dataclass(frozen=True, slots=True)
class FlowDiagnostic:
    """A finding of flow validation. `level`: warning, error (steps will fail) or fatal (the flow cannot run)."""

    code: int
    kind: str
    level: str
    message: str
    path: str
    experimental: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    """Facts of the finding, such as `step_id`; empty from servers of earlier versions."""


@dataclass(frozen=True, slots=True)
class StoredFlow:
    """`version` is the 1-based number among the versions of the flow's name; 0 without a name."""

    flow_id: str
    version: int
    diagnostics: list[FlowDiagnostic]
    newest_version: int = 0
    """Number of the newest version; higher than `version` if an older flow was stored again."""
    label_from: int = 0
    """Number of the version that had the label before; 0 if none had it, or this version."""


@dataclass(frozen=True, slots=True)
class FlowVersion:
    flow_id: str
    version: int
    labels: list[str]
    stored_at_ms: int


@dataclass(frozen=True, slots=True)
class FlowInfo:
    """A named flow with all its versions, oldest first."""

    name: str
    versions: list[FlowVersion]


@dataclass(frozen=True, slots=True)
class Run:
    """`status`: queued (it lacks an executor or a host), running, completed, failed, cancelled or recovery_failed."""

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
    queued_reason: str = ""
    """Why the run makes no progress, for display; empty unless queued."""
    paused_ms: int = 0
    """How long no process drove the run; 0 in a mesh."""

    @property
    def ended(self) -> bool:
        return self.status not in ("running", QUEUED)


@dataclass(frozen=True, slots=True)
class RunItem:
    """Outcome of one input. `raw` is the result as compact JSON, empty while running, after a failure, and if large."""

    item: int
    status: str
    raw: bytes
    failure: Failure | None
    completed_at_ms: int | None
    result_bytes: int = 0
    """Length of a result of more than 16 MiB, which `Client.get_result` reads; else 0."""

    @property
    def result(self) -> Any:
        """The result as a tree; None while running and after a failure.

        Raises: FailedPrecondition `RESULT_TOO_LARGE`, if `result_bytes` is set.
        """
        return _tree(self.raw, self.result_bytes, f"item {self.item}; get_result reads it in chunks")


@dataclass(frozen=True, slots=True)
class RunStep:
    """A started step.

    `status`: running, completed, failed, skipped (a step that it needs has failed), or cancelled (the run ended before
    the step did).

    `raw`: the result, if results were requested.
    """

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
    duration_ms: int | None = None
    """Duration of the last attempt, by one clock; None while running, if cancelled, and if never dispatched."""
    result_bytes: int = 0
    """Length of a requested result of more than 16 MiB; else 0. Such results are not sent."""
    path: str = ""
    """Path of the step in its run, such as `7/summaries[0]/ask`; empty from a server of an earlier version."""
    skipped_for: str = ""
    """Of a skipped step: the id of the failed step that it needs."""

    @property
    def result(self) -> Any:
        """The result as a tree; None without one. Raises: as `RunItem.result`."""
        return _tree(self.raw, self.result_bytes, f"step {self.step_id}, and results of steps are not read in chunks")


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """An event of a run. Fields that do not apply to `kind` are empty.

    `run_id`: for a step of a sub-run, the sub-run's id. `raw`: the result, if results were requested. `until_ms`: end
    of a sleep, or time of the next attempt. `done` and `total`: of a progress report, 0 if unknown. `run`: set in the
    last event, `run_ended`. `message`: of a skipped step, the id of the failed step that it needs.
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
    """Run id, item and step index of the step that opened the sub-run; None outside of sub-runs."""
    attempt: int = 0
    duration_ms: int = 0
    until_ms: int | None = None
    message: str = ""
    raw: bytes = b""
    failure: Failure | None = None
    sub_run_id: str = ""
    executor_id: str = ""
    run: Run | None = None
    done: float = 0.0
    total: float = 0.0
    result_bytes: int = 0
    """Length of a requested result of more than 16 MiB; else 0. `Client.get_result` reads that of an item."""
    path: str = ""
    """As in `RunStep`."""
    lines: tuple[LogLine, ...] = ()
    """Of `step_logged`: log lines. Of `step_failed`: the last ones of the attempt. Only if logs were requested."""
    dropped: int = 0
    """Of `step_logged`: number of log lines left out before these."""

    @property
    def result(self) -> Any:
        """The result as a tree; None without one. Raises: as `RunItem.result`."""
        return _tree(self.raw, self.result_bytes, "this event; get_result reads the result of an item in chunks")


@dataclass(frozen=True, slots=True)
class Component:
    """A component offered by a live host. Schemas are trees; None if the component declares no schema."""

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
    blob_error: str = ""
    """Why the blob store refused the last blob; empty if it did not."""
    value_bytes_max: int = 0
    """Memory for large values; 0 if unknown."""
    value_waiting: int = 0
    """Runs that wait for that memory."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin of a host. `state`: starting, ready, restarting, failed or conflict.

    `last_error`: cause of a failed start or of the server's end; what the conflict is.
    """

    plugin: str
    type: str
    state: str
    last_error: str
    components: int
    restarts: int = 0


RESTART_OUTCOMES = {
    "kept": "not restarted, the former server serves on",
    "failed": "did not start, and no server serves; its host tries again",
    "no_server": "nothing to restart",
    "unreachable": "unknown, the host did not answer",
    "unsupported": "not restarted",
    "not_tried": "not tried",
}
"""Outcomes on one host, as people read them; the others read well as they are."""


@dataclass(frozen=True, slots=True)
class HostRestart:
    """What a restart of a plugin did on one host."""

    host_id: str
    outcome: str
    """restarted, kept (the former server serves on), failed, no_server, unreachable, unsupported or not_tried."""
    detail: str = ""
    """More about the outcome, for display."""

    @property
    def text(self) -> str:
        """The outcome for people: `restarted`, `not tried: host-1 had no success`."""
        said = RESTART_OUTCOMES.get(self.outcome, self.outcome)
        return f"{said}: {self.detail}" if self.detail else said


@dataclass(frozen=True, slots=True)
class HostInfo:
    host_id: str
    address: str
    capacity: int
    draining: bool
    plugins: list[PluginInfo]
    blob_error: str = ""
    """As in `ExecutorInfo`."""
    pool: str = ""
    """Empty: the default pool."""
    value_bytes_max: int = 0
    """Memory for large values; 0 if unknown."""
    value_waiting: int = 0
    """Calls that wait for that memory."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """The room of the store. Bytes; rates are means over the last minute."""

    bytes_in_use: int
    bytes_allocated: int
    """Size of etcd's file, which etcd compares with its quota."""
    quota_bytes: int
    bytes_in_per_s: float
    bytes_out_per_s: float
    runs_in_per_s: float
    runs_out_per_s: float
    """Runs that left the store: packed, expired or deleted."""
    packing_lag_ms: int
    """Age of the oldest run that is due to be packed; 0 if none is."""
    segments: int
    packed_runs: int
    packed_bytes: int
    inline_bytes_max: int
    """Larger values become blobs."""
    runs_per_s_max: float | None = None
    """Rate to which admissions are limited; None while they are free."""
    slowed: list[str] = field(default_factory=list)
    """What is slowed down, and why. Texts for people."""


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """Live executors and hosts. `leader_id` is empty while no control plane leads.

    `obstacles`: why no run can begin or make progress; `warnings`: what else needs an operator. Texts for people.
    """

    leader_id: str
    control_plane_id: str
    executors: list[ExecutorInfo]
    hosts: list[HostInfo]
    runs_pending: int
    obstacles: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    value_bytes_max: int = 0
    """Memory for large values of the control plane that answered; 0 if unknown."""
    value_waiting: int = 0
    """Calls of clients that wait for that memory."""
    store: StoreInfo | None = None
    """None if the store has no bound, or does not tell its size."""


def _tree(raw: bytes, result_bytes: int, whose: str) -> Any:
    """Return a result as a tree. Raises: FailedPrecondition `RESULT_TOO_LARGE`."""
    if result_bytes:
        text = f"{result_bytes:,} bytes, more than the {PAYLOAD_BYTES_MAX:,} of a message, has the result of {whose}"
        raise FailedPrecondition("RESULT_TOO_LARGE", text, result_bytes=result_bytes)
    return decode(raw) if raw else None
