from google.protobuf import struct_pb2 as _struct_pb2
from stepflow.mesh.v1 import flows_pb2 as _flows_pb2
from stepflow.mesh.v1 import journal_pb2 as _journal_pb2
from stepflow.mesh.v1 import retry_pb2 as _retry_pb2
from stepflow.mesh.v1 import values_pb2 as _values_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitRunRequest(_message.Message):
    __slots__ = ("run_id", "flow", "inputs", "variables", "overrides", "concurrency_max", "input_unchecked", "labels", "retry", "no_check")
    class VariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _values_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_values_pb2.Value, _Mapping]] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_MAX_FIELD_NUMBER: _ClassVar[int]
    INPUT_UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    NO_CHECK_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    flow: _flows_pb2.FlowReference
    inputs: _containers.RepeatedCompositeFieldContainer[_values_pb2.Value]
    variables: _containers.MessageMap[str, _values_pb2.Value]
    overrides: _values_pb2.Value
    concurrency_max: int
    input_unchecked: bool
    labels: _struct_pb2.Struct
    retry: _retry_pb2.RetryPolicy
    no_check: bool
    def __init__(self, run_id: _Optional[str] = ..., flow: _Optional[_Union[_flows_pb2.FlowReference, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_values_pb2.Value, _Mapping]]] = ..., variables: _Optional[_Mapping[str, _values_pb2.Value]] = ..., overrides: _Optional[_Union[_values_pb2.Value, _Mapping]] = ..., concurrency_max: _Optional[int] = ..., input_unchecked: bool = ..., labels: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., retry: _Optional[_Union[_retry_pb2.RetryPolicy, _Mapping]] = ..., no_check: bool = ...) -> None: ...

class SubmitRunResponse(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class SubmitRunsRequest(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[SubmitRunRequest]
    def __init__(self, runs: _Optional[_Iterable[_Union[SubmitRunRequest, _Mapping]]] = ...) -> None: ...

class SubmitRunsResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[SubmitOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[SubmitOutcome, _Mapping]]] = ...) -> None: ...

class SubmitOutcome(_message.Message):
    __slots__ = ("run_id", "rejection")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REJECTION_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    rejection: Rejection
    def __init__(self, run_id: _Optional[str] = ..., rejection: _Optional[_Union[Rejection, _Mapping]] = ...) -> None: ...

class SubmitBatchRequest(_message.Message):
    __slots__ = ("run", "inputs", "end")
    RUN_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    run: SubmitRunRequest
    inputs: BatchInputs
    end: BatchEnd
    def __init__(self, run: _Optional[_Union[SubmitRunRequest, _Mapping]] = ..., inputs: _Optional[_Union[BatchInputs, _Mapping]] = ..., end: _Optional[_Union[BatchEnd, _Mapping]] = ...) -> None: ...

class BatchInputs(_message.Message):
    __slots__ = ("inputs",)
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[_values_pb2.Value]
    def __init__(self, inputs: _Optional[_Iterable[_Union[_values_pb2.Value, _Mapping]]] = ...) -> None: ...

class BatchEnd(_message.Message):
    __slots__ = ("items_total",)
    ITEMS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    items_total: int
    def __init__(self, items_total: _Optional[int] = ...) -> None: ...

class SubmitBatchResponse(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("status", "reason", "message", "retry_after_ms", "diagnostics")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    status: str
    reason: str
    message: str
    retry_after_ms: int
    diagnostics: _containers.RepeatedCompositeFieldContainer[_flows_pb2.FlowDiagnostic]
    def __init__(self, status: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., diagnostics: _Optional[_Iterable[_Union[_flows_pb2.FlowDiagnostic, _Mapping]]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("run_id", "flow_id", "flow_name", "status", "items_total", "items_completed", "items_failed", "items_cancelled", "created_at_ms", "completed_at_ms", "labels", "queued_reason", "paused_ms")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FAILED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REASON_FIELD_NUMBER: _ClassVar[int]
    PAUSED_MS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    flow_id: str
    flow_name: str
    status: _journal_pb2.RunStatus
    items_total: int
    items_completed: int
    items_failed: int
    items_cancelled: int
    created_at_ms: int
    completed_at_ms: int
    labels: _struct_pb2.Struct
    queued_reason: str
    paused_ms: int
    def __init__(self, run_id: _Optional[str] = ..., flow_id: _Optional[str] = ..., flow_name: _Optional[str] = ..., status: _Optional[_Union[_journal_pb2.RunStatus, str]] = ..., items_total: _Optional[int] = ..., items_completed: _Optional[int] = ..., items_failed: _Optional[int] = ..., items_cancelled: _Optional[int] = ..., created_at_ms: _Optional[int] = ..., completed_at_ms: _Optional[int] = ..., labels: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., queued_reason: _Optional[str] = ..., paused_ms: _Optional[int] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("item", "status", "outcome", "completed_at_ms")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    item: int
    status: _journal_pb2.RunStatus
    outcome: Outcome
    completed_at_ms: int
    def __init__(self, item: _Optional[int] = ..., status: _Optional[_Union[_journal_pb2.RunStatus, str]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., completed_at_ms: _Optional[int] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("result", "failure", "result_bytes")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
    result: _values_pb2.Value
    failure: FailedOutcome
    result_bytes: int
    def __init__(self, result: _Optional[_Union[_values_pb2.Value, _Mapping]] = ..., failure: _Optional[_Union[FailedOutcome, _Mapping]] = ..., result_bytes: _Optional[int] = ...) -> None: ...

class FailedOutcome(_message.Message):
    __slots__ = ("code", "message", "data")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    code: _journal_pb2.FailureCode
    message: str
    data: _values_pb2.Value
    def __init__(self, code: _Optional[_Union[_journal_pb2.FailureCode, str]] = ..., message: _Optional[str] = ..., data: _Optional[_Union[_values_pb2.Value, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class WaitRunRequest(_message.Message):
    __slots__ = ("run_id", "timeout_ms", "include_items", "value_form")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_ITEMS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FORM_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    timeout_ms: int
    include_items: bool
    value_form: _values_pb2.ValueForm
    def __init__(self, run_id: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., include_items: bool = ..., value_form: _Optional[_Union[_values_pb2.ValueForm, str]] = ...) -> None: ...

class WaitRunResponse(_message.Message):
    __slots__ = ("run", "items", "next_page_token")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    items: _containers.RepeatedCompositeFieldContainer[Item]
    next_page_token: str
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("partition", "seq")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    partition: int
    seq: int
    def __init__(self, partition: _Optional[int] = ..., seq: _Optional[int] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("run_id", "positions", "include_results", "value_form", "include_logs", "until_now")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_RESULTS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FORM_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_LOGS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_NOW_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    positions: _containers.RepeatedCompositeFieldContainer[Position]
    include_results: bool
    value_form: _values_pb2.ValueForm
    include_logs: bool
    until_now: bool
    def __init__(self, run_id: _Optional[str] = ..., positions: _Optional[_Iterable[_Union[Position, _Mapping]]] = ..., include_results: bool = ..., value_form: _Optional[_Union[_values_pb2.ValueForm, str]] = ..., include_logs: bool = ..., until_now: bool = ...) -> None: ...

class WatchRunResponse(_message.Message):
    __slots__ = ("events", "position")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[RunEvent]
    position: Position
    def __init__(self, events: _Optional[_Iterable[_Union[RunEvent, _Mapping]]] = ..., position: _Optional[_Union[Position, _Mapping]] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("at_ms", "run_adopted", "step_started", "step_progress", "step_ended", "step_retrying", "step_sleeping", "sub_run_opened", "item_ended", "run_cancel_requested", "run_ended", "step_waiting", "run_signalled", "history_incomplete", "step_logged", "step_skipped")
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    RUN_ADOPTED_FIELD_NUMBER: _ClassVar[int]
    STEP_STARTED_FIELD_NUMBER: _ClassVar[int]
    STEP_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STEP_ENDED_FIELD_NUMBER: _ClassVar[int]
    STEP_RETRYING_FIELD_NUMBER: _ClassVar[int]
    STEP_SLEEPING_FIELD_NUMBER: _ClassVar[int]
    SUB_RUN_OPENED_FIELD_NUMBER: _ClassVar[int]
    ITEM_ENDED_FIELD_NUMBER: _ClassVar[int]
    RUN_CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    RUN_ENDED_FIELD_NUMBER: _ClassVar[int]
    STEP_WAITING_FIELD_NUMBER: _ClassVar[int]
    RUN_SIGNALLED_FIELD_NUMBER: _ClassVar[int]
    HISTORY_INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    STEP_LOGGED_FIELD_NUMBER: _ClassVar[int]
    STEP_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    at_ms: int
    run_adopted: RunAdopted
    step_started: StepStarted
    step_progress: StepProgress
    step_ended: StepEnded
    step_retrying: StepRetrying
    step_sleeping: StepSleeping
    sub_run_opened: SubRunOpened
    item_ended: ItemEnded
    run_cancel_requested: RunCancelRequested
    run_ended: RunEnded
    step_waiting: StepWaiting
    run_signalled: RunSignalled
    history_incomplete: HistoryIncomplete
    step_logged: StepLogged
    step_skipped: StepSkipped
    def __init__(self, at_ms: _Optional[int] = ..., run_adopted: _Optional[_Union[RunAdopted, _Mapping]] = ..., step_started: _Optional[_Union[StepStarted, _Mapping]] = ..., step_progress: _Optional[_Union[StepProgress, _Mapping]] = ..., step_ended: _Optional[_Union[StepEnded, _Mapping]] = ..., step_retrying: _Optional[_Union[StepRetrying, _Mapping]] = ..., step_sleeping: _Optional[_Union[StepSleeping, _Mapping]] = ..., sub_run_opened: _Optional[_Union[SubRunOpened, _Mapping]] = ..., item_ended: _Optional[_Union[ItemEnded, _Mapping]] = ..., run_cancel_requested: _Optional[_Union[RunCancelRequested, _Mapping]] = ..., run_ended: _Optional[_Union[RunEnded, _Mapping]] = ..., step_waiting: _Optional[_Union[StepWaiting, _Mapping]] = ..., run_signalled: _Optional[_Union[RunSignalled, _Mapping]] = ..., history_incomplete: _Optional[_Union[HistoryIncomplete, _Mapping]] = ..., step_logged: _Optional[_Union[StepLogged, _Mapping]] = ..., step_skipped: _Optional[_Union[StepSkipped, _Mapping]] = ...) -> None: ...

class StepPlace(_message.Message):
    __slots__ = ("run_id", "item", "step_id", "step_index", "component", "depth", "parent", "path")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    item: int
    step_id: str
    step_index: int
    component: str
    depth: int
    parent: ParentStep
    path: str
    def __init__(self, run_id: _Optional[str] = ..., item: _Optional[int] = ..., step_id: _Optional[str] = ..., step_index: _Optional[int] = ..., component: _Optional[str] = ..., depth: _Optional[int] = ..., parent: _Optional[_Union[ParentStep, _Mapping]] = ..., path: _Optional[str] = ...) -> None: ...

class ParentStep(_message.Message):
    __slots__ = ("run_id", "item", "step_index")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    item: int
    step_index: int
    def __init__(self, run_id: _Optional[str] = ..., item: _Optional[int] = ..., step_index: _Optional[int] = ...) -> None: ...

class HistoryIncomplete(_message.Message):
    __slots__ = ("partition", "reason")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    partition: int
    reason: str
    def __init__(self, partition: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RunAdopted(_message.Message):
    __slots__ = ("partition", "executor_id", "handed_over")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    partition: int
    executor_id: str
    handed_over: bool
    def __init__(self, partition: _Optional[int] = ..., executor_id: _Optional[str] = ..., handed_over: bool = ...) -> None: ...

class StepStarted(_message.Message):
    __slots__ = ("step", "attempt")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    attempt: int
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., attempt: _Optional[int] = ...) -> None: ...

class StepProgress(_message.Message):
    __slots__ = ("step", "attempt", "message", "done", "total")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    attempt: int
    message: str
    done: float
    total: float
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., attempt: _Optional[int] = ..., message: _Optional[str] = ..., done: _Optional[float] = ..., total: _Optional[float] = ...) -> None: ...

class StepLogged(_message.Message):
    __slots__ = ("step", "attempt", "lines", "dropped")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    attempt: int
    lines: _containers.RepeatedCompositeFieldContainer[_journal_pb2.LogLine]
    dropped: int
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., attempt: _Optional[int] = ..., lines: _Optional[_Iterable[_Union[_journal_pb2.LogLine, _Mapping]]] = ..., dropped: _Optional[int] = ...) -> None: ...

class StepEnded(_message.Message):
    __slots__ = ("step", "attempt", "outcome", "duration_ms", "failed", "log_tail")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    attempt: int
    outcome: Outcome
    duration_ms: int
    failed: bool
    log_tail: _containers.RepeatedCompositeFieldContainer[_journal_pb2.LogLine]
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., attempt: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., duration_ms: _Optional[int] = ..., failed: bool = ..., log_tail: _Optional[_Iterable[_Union[_journal_pb2.LogLine, _Mapping]]] = ...) -> None: ...

class StepSkipped(_message.Message):
    __slots__ = ("step", "failed_step_id", "failure")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FAILED_STEP_ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    failed_step_id: str
    failure: FailedOutcome
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., failed_step_id: _Optional[str] = ..., failure: _Optional[_Union[FailedOutcome, _Mapping]] = ...) -> None: ...

class StepRetrying(_message.Message):
    __slots__ = ("step", "attempt", "failure", "retry_at_ms")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AT_MS_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    attempt: int
    failure: FailedOutcome
    retry_at_ms: int
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., attempt: _Optional[int] = ..., failure: _Optional[_Union[FailedOutcome, _Mapping]] = ..., retry_at_ms: _Optional[int] = ...) -> None: ...

class StepSleeping(_message.Message):
    __slots__ = ("step", "until_ms")
    STEP_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    until_ms: int
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., until_ms: _Optional[int] = ...) -> None: ...

class StepWaiting(_message.Message):
    __slots__ = ("step", "signal", "until_ms")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    signal: str
    until_ms: int
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., signal: _Optional[str] = ..., until_ms: _Optional[int] = ...) -> None: ...

class SubRunOpened(_message.Message):
    __slots__ = ("step", "sub_run_id")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SUB_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    sub_run_id: str
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., sub_run_id: _Optional[str] = ...) -> None: ...

class ItemEnded(_message.Message):
    __slots__ = ("item", "failed", "outcome")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    item: int
    failed: bool
    outcome: Outcome
    def __init__(self, item: _Optional[int] = ..., failed: bool = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class RunCancelRequested(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunSignalled(_message.Message):
    __slots__ = ("item", "signal")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    item: int
    signal: str
    def __init__(self, item: _Optional[int] = ..., signal: _Optional[str] = ...) -> None: ...

class RunEnded(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("statuses", "flow_name", "created_since_ms", "page_size", "page_token", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    FLOW_NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedScalarFieldContainer[_journal_pb2.RunStatus]
    flow_name: str
    created_since_ms: int
    page_size: int
    page_token: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, statuses: _Optional[_Iterable[_Union[_journal_pb2.RunStatus, str]]] = ..., flow_name: _Optional[str] = ..., created_since_ms: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class CancelRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class SignalRunRequest(_message.Message):
    __slots__ = ("run_id", "name", "payload", "item", "signal_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    payload: _values_pb2.Value
    item: int
    signal_id: str
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., payload: _Optional[_Union[_values_pb2.Value, _Mapping]] = ..., item: _Optional[int] = ..., signal_id: _Optional[str] = ...) -> None: ...

class SignalRunResponse(_message.Message):
    __slots__ = ("signal_id",)
    SIGNAL_ID_FIELD_NUMBER: _ClassVar[int]
    signal_id: str
    def __init__(self, signal_id: _Optional[str] = ...) -> None: ...

class DeleteRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class DeleteRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListItemsRequest(_message.Message):
    __slots__ = ("run_id", "value_form", "page_size", "page_token", "first_item")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FORM_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FIRST_ITEM_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    value_form: _values_pb2.ValueForm
    page_size: int
    page_token: str
    first_item: int
    def __init__(self, run_id: _Optional[str] = ..., value_form: _Optional[_Union[_values_pb2.ValueForm, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., first_item: _Optional[int] = ...) -> None: ...

class ListItemsResponse(_message.Message):
    __slots__ = ("items", "next_page_token")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    next_page_token: str
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetResultRequest(_message.Message):
    __slots__ = ("run_id", "item", "offset")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    item: int
    offset: int
    def __init__(self, run_id: _Optional[str] = ..., item: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class GetResultResponse(_message.Message):
    __slots__ = ("chunk", "result_bytes")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    result_bytes: int
    def __init__(self, chunk: _Optional[bytes] = ..., result_bytes: _Optional[int] = ...) -> None: ...

class ListStepsRequest(_message.Message):
    __slots__ = ("run_id", "include_results", "value_form", "page_size", "page_token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_RESULTS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FORM_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    include_results: bool
    value_form: _values_pb2.ValueForm
    page_size: int
    page_token: str
    def __init__(self, run_id: _Optional[str] = ..., include_results: bool = ..., value_form: _Optional[_Union[_values_pb2.ValueForm, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListStepsResponse(_message.Message):
    __slots__ = ("steps", "next_page_token", "incomplete")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[StepSummary]
    next_page_token: str
    incomplete: str
    def __init__(self, steps: _Optional[_Iterable[_Union[StepSummary, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., incomplete: _Optional[str] = ...) -> None: ...

class StepSummary(_message.Message):
    __slots__ = ("step", "status", "attempt", "retries", "started_at_ms", "completed_at_ms", "outcome", "duration_ms", "failed_step_id")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    FAILED_STEP_ID_FIELD_NUMBER: _ClassVar[int]
    step: StepPlace
    status: _journal_pb2.RunStatus
    attempt: int
    retries: int
    started_at_ms: int
    completed_at_ms: int
    outcome: Outcome
    duration_ms: int
    failed_step_id: str
    def __init__(self, step: _Optional[_Union[StepPlace, _Mapping]] = ..., status: _Optional[_Union[_journal_pb2.RunStatus, str]] = ..., attempt: _Optional[int] = ..., retries: _Optional[int] = ..., started_at_ms: _Optional[int] = ..., completed_at_ms: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., duration_ms: _Optional[int] = ..., failed_step_id: _Optional[str] = ...) -> None: ...
