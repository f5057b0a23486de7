from stepflow.mesh.v1 import journal_pb2 as _journal_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FollowLogsRequest(_message.Message):
    __slots__ = ("follow", "unfollow", "sync", "follow_all")
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    UNFOLLOW_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_ALL_FIELD_NUMBER: _ClassVar[int]
    follow: _containers.RepeatedScalarFieldContainer[str]
    unfollow: _containers.RepeatedScalarFieldContainer[str]
    sync: int
    follow_all: bool
    def __init__(self, follow: _Optional[_Iterable[str]] = ..., unfollow: _Optional[_Iterable[str]] = ..., sync: _Optional[int] = ..., follow_all: bool = ...) -> None: ...

class FollowLogsResponse(_message.Message):
    __slots__ = ("logs", "synced")
    LOGS_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    logs: _containers.RepeatedCompositeFieldContainer[CallLog]
    synced: int
    def __init__(self, logs: _Optional[_Iterable[_Union[CallLog, _Mapping]]] = ..., synced: _Optional[int] = ...) -> None: ...

class CallLog(_message.Message):
    __slots__ = ("root_run_id", "run_id", "item", "step_id", "step_index", "component", "depth", "attempt", "lines", "dropped", "plugin")
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    root_run_id: str
    run_id: str
    item: int
    step_id: str
    step_index: int
    component: str
    depth: int
    attempt: int
    lines: _containers.RepeatedCompositeFieldContainer[_journal_pb2.LogLine]
    dropped: int
    plugin: str
    def __init__(self, root_run_id: _Optional[str] = ..., run_id: _Optional[str] = ..., item: _Optional[int] = ..., step_id: _Optional[str] = ..., step_index: _Optional[int] = ..., component: _Optional[str] = ..., depth: _Optional[int] = ..., attempt: _Optional[int] = ..., lines: _Optional[_Iterable[_Union[_journal_pb2.LogLine, _Mapping]]] = ..., dropped: _Optional[int] = ..., plugin: _Optional[str] = ...) -> None: ...

class DrainHostRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainHostResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UndrainHostRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UndrainHostResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RestartHostPluginRequest(_message.Message):
    __slots__ = ("plugin",)
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    def __init__(self, plugin: _Optional[str] = ...) -> None: ...

class RestartHostPluginResponse(_message.Message):
    __slots__ = ("change",)
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    change: PluginChange
    def __init__(self, change: _Optional[_Union[PluginChange, _Mapping]] = ...) -> None: ...

class ReloadHostRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadHostResponse(_message.Message):
    __slots__ = ("changes", "routes_added", "routes_removed", "routes_changed")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_ADDED_FIELD_NUMBER: _ClassVar[int]
    ROUTES_REMOVED_FIELD_NUMBER: _ClassVar[int]
    ROUTES_CHANGED_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[PluginChange]
    routes_added: _containers.RepeatedScalarFieldContainer[str]
    routes_removed: _containers.RepeatedScalarFieldContainer[str]
    routes_changed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, changes: _Optional[_Iterable[_Union[PluginChange, _Mapping]]] = ..., routes_added: _Optional[_Iterable[str]] = ..., routes_removed: _Optional[_Iterable[str]] = ..., routes_changed: _Optional[_Iterable[str]] = ...) -> None: ...

class PluginChange(_message.Message):
    __slots__ = ("plugin", "outcome", "detail")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    outcome: str
    detail: str
    def __init__(self, plugin: _Optional[str] = ..., outcome: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class ExecutorFrame(_message.Message):
    __slots__ = ("hello", "calls", "cancels", "acks", "attaches", "replies")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    ATTACHES_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    cancels: _containers.RepeatedCompositeFieldContainer[Cancel]
    acks: _containers.RepeatedCompositeFieldContainer[Ack]
    attaches: _containers.RepeatedCompositeFieldContainer[Attach]
    replies: _containers.RepeatedCompositeFieldContainer[CallbackReply]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., cancels: _Optional[_Iterable[_Union[Cancel, _Mapping]]] = ..., acks: _Optional[_Iterable[_Union[Ack, _Mapping]]] = ..., attaches: _Optional[_Iterable[_Union[Attach, _Mapping]]] = ..., replies: _Optional[_Iterable[_Union[CallbackReply, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("executor_id", "token")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    token: int
    def __init__(self, executor_id: _Optional[str] = ..., token: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("call_id", "plugin", "component", "input", "key", "attempt", "epoch", "depth", "timeout_ms", "idle_timeout_ms", "root_run_id", "run_id", "flow_id", "step_id", "item", "path_params", "route_params_json", "traceparent", "path", "partition", "secrets", "secrets_complete", "step_index")
    class PathParamsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    PATH_PARAMS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    SECRETS_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    plugin: str
    component: str
    input: _journal_pb2.Payload
    key: str
    attempt: int
    epoch: int
    depth: int
    timeout_ms: int
    idle_timeout_ms: int
    root_run_id: str
    run_id: str
    flow_id: str
    step_id: str
    item: int
    path_params: _containers.ScalarMap[str, str]
    route_params_json: bytes
    traceparent: str
    path: str
    partition: int
    secrets: _containers.RepeatedScalarFieldContainer[str]
    secrets_complete: bool
    step_index: int
    def __init__(self, call_id: _Optional[int] = ..., plugin: _Optional[str] = ..., component: _Optional[str] = ..., input: _Optional[_Union[_journal_pb2.Payload, _Mapping]] = ..., key: _Optional[str] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., depth: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., idle_timeout_ms: _Optional[int] = ..., root_run_id: _Optional[str] = ..., run_id: _Optional[str] = ..., flow_id: _Optional[str] = ..., step_id: _Optional[str] = ..., item: _Optional[int] = ..., path_params: _Optional[_Mapping[str, str]] = ..., route_params_json: _Optional[bytes] = ..., traceparent: _Optional[str] = ..., path: _Optional[str] = ..., partition: _Optional[int] = ..., secrets: _Optional[_Iterable[str]] = ..., secrets_complete: bool = ..., step_index: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    def __init__(self, call_id: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("key", "attempt")
    KEY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    key: str
    attempt: int
    def __init__(self, key: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[AttachRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[AttachRun, _Mapping]]] = ...) -> None: ...

class AttachRun(_message.Message):
    __slots__ = ("run_id", "epoch", "partition")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    epoch: int
    partition: int
    def __init__(self, run_id: _Optional[str] = ..., epoch: _Optional[int] = ..., partition: _Optional[int] = ...) -> None: ...

class HostFrame(_message.Message):
    __slots__ = ("results", "progress", "attached", "callbacks", "credits", "hello")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    CALLBACKS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[CallResult]
    progress: _containers.RepeatedCompositeFieldContainer[Progress]
    attached: _containers.RepeatedCompositeFieldContainer[Attached]
    callbacks: _containers.RepeatedCompositeFieldContainer[Callback]
    credits: int
    hello: HostHello
    def __init__(self, results: _Optional[_Iterable[_Union[CallResult, _Mapping]]] = ..., progress: _Optional[_Iterable[_Union[Progress, _Mapping]]] = ..., attached: _Optional[_Iterable[_Union[Attached, _Mapping]]] = ..., callbacks: _Optional[_Iterable[_Union[Callback, _Mapping]]] = ..., credits: _Optional[int] = ..., hello: _Optional[_Union[HostHello, _Mapping]] = ...) -> None: ...

class HostHello(_message.Message):
    __slots__ = ("host_id",)
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    def __init__(self, host_id: _Optional[str] = ...) -> None: ...

class CallResult(_message.Message):
    __slots__ = ("call_id", "key", "attempt", "started_at_ms", "result", "failure", "duration_ms", "log_tail")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    key: str
    attempt: int
    started_at_ms: int
    result: _journal_pb2.Payload
    failure: _journal_pb2.Failure
    duration_ms: int
    log_tail: _containers.RepeatedCompositeFieldContainer[_journal_pb2.LogLine]
    def __init__(self, call_id: _Optional[int] = ..., key: _Optional[str] = ..., attempt: _Optional[int] = ..., started_at_ms: _Optional[int] = ..., result: _Optional[_Union[_journal_pb2.Payload, _Mapping]] = ..., failure: _Optional[_Union[_journal_pb2.Failure, _Mapping]] = ..., duration_ms: _Optional[int] = ..., log_tail: _Optional[_Iterable[_Union[_journal_pb2.LogLine, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("call_id", "done", "total", "message")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    done: float
    total: float
    message: str
    def __init__(self, call_id: _Optional[int] = ..., done: _Optional[float] = ..., total: _Optional[float] = ..., message: _Optional[str] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("calls", "run_ids")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    RUN_IDS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[HeldCall]
    run_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, calls: _Optional[_Iterable[_Union[HeldCall, _Mapping]]] = ..., run_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class HeldCall(_message.Message):
    __slots__ = ("run_id", "key", "attempt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    key: str
    attempt: int
    def __init__(self, run_id: _Optional[str] = ..., key: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class Callback(_message.Message):
    __slots__ = ("callback_id", "call_id", "start_run", "get_run", "get_flow")
    CALLBACK_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    START_RUN_FIELD_NUMBER: _ClassVar[int]
    GET_RUN_FIELD_NUMBER: _ClassVar[int]
    GET_FLOW_FIELD_NUMBER: _ClassVar[int]
    callback_id: int
    call_id: int
    start_run: StartRun
    get_run: GetRun
    get_flow: GetFlow
    def __init__(self, callback_id: _Optional[int] = ..., call_id: _Optional[int] = ..., start_run: _Optional[_Union[StartRun, _Mapping]] = ..., get_run: _Optional[_Union[GetRun, _Mapping]] = ..., get_flow: _Optional[_Union[GetFlow, _Mapping]] = ...) -> None: ...

class GetFlow(_message.Message):
    __slots__ = ("flow_id",)
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    flow_id: str
    def __init__(self, flow_id: _Optional[str] = ...) -> None: ...

class StartRun(_message.Message):
    __slots__ = ("flow", "inputs", "key", "wait", "max_concurrency", "variables_json", "overrides_json")
    FLOW_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_JSON_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_JSON_FIELD_NUMBER: _ClassVar[int]
    flow: _journal_pb2.Payload
    inputs: _journal_pb2.Payload
    key: str
    wait: bool
    max_concurrency: int
    variables_json: bytes
    overrides_json: bytes
    def __init__(self, flow: _Optional[_Union[_journal_pb2.Payload, _Mapping]] = ..., inputs: _Optional[_Union[_journal_pb2.Payload, _Mapping]] = ..., key: _Optional[str] = ..., wait: bool = ..., max_concurrency: _Optional[int] = ..., variables_json: _Optional[bytes] = ..., overrides_json: _Optional[bytes] = ...) -> None: ...

class GetRun(_message.Message):
    __slots__ = ("run_id", "wait")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    wait: bool
    def __init__(self, run_id: _Optional[str] = ..., wait: bool = ...) -> None: ...

class CallbackReply(_message.Message):
    __slots__ = ("callback_id", "report", "error", "flow_json")
    CALLBACK_ID_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FLOW_JSON_FIELD_NUMBER: _ClassVar[int]
    callback_id: int
    report: RunReport
    error: CallbackError
    flow_json: bytes
    def __init__(self, callback_id: _Optional[int] = ..., report: _Optional[_Union[RunReport, _Mapping]] = ..., error: _Optional[_Union[CallbackError, _Mapping]] = ..., flow_json: _Optional[bytes] = ...) -> None: ...

class CallbackError(_message.Message):
    __slots__ = ("reason", "message", "not_found")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NOT_FOUND_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    not_found: bool
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., not_found: bool = ...) -> None: ...

class RunReport(_message.Message):
    __slots__ = ("run_id", "flow_id", "flow_name", "status", "created_at_ms", "completed_at_ms", "items")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    flow_id: str
    flow_name: str
    status: _journal_pb2.RunStatus
    created_at_ms: int
    completed_at_ms: int
    items: _containers.RepeatedCompositeFieldContainer[ReportItem]
    def __init__(self, run_id: _Optional[str] = ..., flow_id: _Optional[str] = ..., flow_name: _Optional[str] = ..., status: _Optional[_Union[_journal_pb2.RunStatus, str]] = ..., created_at_ms: _Optional[int] = ..., completed_at_ms: _Optional[int] = ..., items: _Optional[_Iterable[_Union[ReportItem, _Mapping]]] = ...) -> None: ...

class ReportItem(_message.Message):
    __slots__ = ("status", "flow_result")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FLOW_RESULT_FIELD_NUMBER: _ClassVar[int]
    status: _journal_pb2.RunStatus
    flow_result: _journal_pb2.Payload
    def __init__(self, status: _Optional[_Union[_journal_pb2.RunStatus, str]] = ..., flow_result: _Optional[_Union[_journal_pb2.Payload, _Mapping]] = ...) -> None: ...
