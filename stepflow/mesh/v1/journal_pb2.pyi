from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FailureCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_CODE_UNSPECIFIED: _ClassVar[FailureCode]
    FAILURE_CODE_TIMEOUT: _ClassVar[FailureCode]
    FAILURE_CODE_INVALID_INPUT: _ClassVar[FailureCode]
    FAILURE_CODE_COMPONENT_FAILED: _ClassVar[FailureCode]
    FAILURE_CODE_CANCELLED: _ClassVar[FailureCode]
    FAILURE_CODE_UNREACHABLE: _ClassVar[FailureCode]
    FAILURE_CODE_COMPONENT_NOT_FOUND: _ClassVar[FailureCode]
    FAILURE_CODE_RESOURCE_UNAVAILABLE: _ClassVar[FailureCode]
    FAILURE_CODE_EXPRESSION_FAILURE: _ClassVar[FailureCode]
    FAILURE_CODE_ORCHESTRATOR_ERROR: _ClassVar[FailureCode]
    FAILURE_CODE_WORKER_ERROR: _ClassVar[FailureCode]

class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIGIN_UNSPECIFIED: _ClassVar[Origin]
    ORIGIN_INPUT: _ClassVar[Origin]
    ORIGIN_ROUTING: _ClassVar[Origin]
    ORIGIN_DISPATCH: _ClassVar[Origin]
    ORIGIN_COMPONENT: _ClassVar[Origin]

class LogLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_LEVEL_UNSPECIFIED: _ClassVar[LogLevel]
    LOG_LEVEL_DEBUG: _ClassVar[LogLevel]
    LOG_LEVEL_INFO: _ClassVar[LogLevel]
    LOG_LEVEL_WARNING: _ClassVar[LogLevel]
    LOG_LEVEL_ERROR: _ClassVar[LogLevel]

class SubRunKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUB_RUN_KIND_UNSPECIFIED: _ClassVar[SubRunKind]
    SUB_RUN_KIND_EVAL: _ClassVar[SubRunKind]
    SUB_RUN_KIND_MAP: _ClassVar[SubRunKind]
    SUB_RUN_KIND_ITERATE: _ClassVar[SubRunKind]
    SUB_RUN_KIND_CALLBACK: _ClassVar[SubRunKind]

class RunStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATUS_UNSPECIFIED: _ClassVar[RunStatus]
    RUN_STATUS_RUNNING: _ClassVar[RunStatus]
    RUN_STATUS_COMPLETED: _ClassVar[RunStatus]
    RUN_STATUS_FAILED: _ClassVar[RunStatus]
    RUN_STATUS_CANCELLED: _ClassVar[RunStatus]
    RUN_STATUS_PAUSED: _ClassVar[RunStatus]
    RUN_STATUS_RECOVERY_FAILED: _ClassVar[RunStatus]
    RUN_STATUS_SKIPPED: _ClassVar[RunStatus]
FAILURE_CODE_UNSPECIFIED: FailureCode
FAILURE_CODE_TIMEOUT: FailureCode
FAILURE_CODE_INVALID_INPUT: FailureCode
FAILURE_CODE_COMPONENT_FAILED: FailureCode
FAILURE_CODE_CANCELLED: FailureCode
FAILURE_CODE_UNREACHABLE: FailureCode
FAILURE_CODE_COMPONENT_NOT_FOUND: FailureCode
FAILURE_CODE_RESOURCE_UNAVAILABLE: FailureCode
FAILURE_CODE_EXPRESSION_FAILURE: FailureCode
FAILURE_CODE_ORCHESTRATOR_ERROR: FailureCode
FAILURE_CODE_WORKER_ERROR: FailureCode
ORIGIN_UNSPECIFIED: Origin
ORIGIN_INPUT: Origin
ORIGIN_ROUTING: Origin
ORIGIN_DISPATCH: Origin
ORIGIN_COMPONENT: Origin
LOG_LEVEL_UNSPECIFIED: LogLevel
LOG_LEVEL_DEBUG: LogLevel
LOG_LEVEL_INFO: LogLevel
LOG_LEVEL_WARNING: LogLevel
LOG_LEVEL_ERROR: LogLevel
SUB_RUN_KIND_UNSPECIFIED: SubRunKind
SUB_RUN_KIND_EVAL: SubRunKind
SUB_RUN_KIND_MAP: SubRunKind
SUB_RUN_KIND_ITERATE: SubRunKind
SUB_RUN_KIND_CALLBACK: SubRunKind
RUN_STATUS_UNSPECIFIED: RunStatus
RUN_STATUS_RUNNING: RunStatus
RUN_STATUS_COMPLETED: RunStatus
RUN_STATUS_FAILED: RunStatus
RUN_STATUS_CANCELLED: RunStatus
RUN_STATUS_PAUSED: RunStatus
RUN_STATUS_RECOVERY_FAILED: RunStatus
RUN_STATUS_SKIPPED: RunStatus

class Payload(_message.Message):
    __slots__ = ("json", "blob", "blob_bytes")
    JSON_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    blob: str
    blob_bytes: int
    def __init__(self, json: _Optional[bytes] = ..., blob: _Optional[str] = ..., blob_bytes: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "data_json", "origin")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DATA_JSON_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    code: FailureCode
    message: str
    data_json: bytes
    origin: Origin
    def __init__(self, code: _Optional[_Union[FailureCode, str]] = ..., message: _Optional[str] = ..., data_json: _Optional[bytes] = ..., origin: _Optional[_Union[Origin, str]] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("at_ms", "level", "text")
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    at_ms: int
    level: LogLevel
    text: str
    def __init__(self, at_ms: _Optional[int] = ..., level: _Optional[_Union[LogLevel, str]] = ..., text: _Optional[str] = ...) -> None: ...

class EntryBatch(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("scope", "item", "step", "at_ms", "adopted", "step_completed", "attempt_failed", "timer_set", "sub_run_started", "inbox_taken", "run_completed", "signal_awaited", "survived")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    STEP_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FAILED_FIELD_NUMBER: _ClassVar[int]
    TIMER_SET_FIELD_NUMBER: _ClassVar[int]
    SUB_RUN_STARTED_FIELD_NUMBER: _ClassVar[int]
    INBOX_TAKEN_FIELD_NUMBER: _ClassVar[int]
    RUN_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_AWAITED_FIELD_NUMBER: _ClassVar[int]
    SURVIVED_FIELD_NUMBER: _ClassVar[int]
    scope: int
    item: int
    step: int
    at_ms: int
    adopted: Adopted
    step_completed: StepCompleted
    attempt_failed: AttemptFailed
    timer_set: TimerSet
    sub_run_started: SubRunStarted
    inbox_taken: InboxTaken
    run_completed: RunCompleted
    signal_awaited: SignalAwaited
    survived: Survived
    def __init__(self, scope: _Optional[int] = ..., item: _Optional[int] = ..., step: _Optional[int] = ..., at_ms: _Optional[int] = ..., adopted: _Optional[_Union[Adopted, _Mapping]] = ..., step_completed: _Optional[_Union[StepCompleted, _Mapping]] = ..., attempt_failed: _Optional[_Union[AttemptFailed, _Mapping]] = ..., timer_set: _Optional[_Union[TimerSet, _Mapping]] = ..., sub_run_started: _Optional[_Union[SubRunStarted, _Mapping]] = ..., inbox_taken: _Optional[_Union[InboxTaken, _Mapping]] = ..., run_completed: _Optional[_Union[RunCompleted, _Mapping]] = ..., signal_awaited: _Optional[_Union[SignalAwaited, _Mapping]] = ..., survived: _Optional[_Union[Survived, _Mapping]] = ...) -> None: ...

class Adopted(_message.Message):
    __slots__ = ("epoch", "executor_id", "handed_over", "unnoted_owner", "given_back")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    UNNOTED_OWNER_FIELD_NUMBER: _ClassVar[int]
    GIVEN_BACK_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    executor_id: str
    handed_over: bool
    unnoted_owner: str
    given_back: bool
    def __init__(self, epoch: _Optional[int] = ..., executor_id: _Optional[str] = ..., handed_over: bool = ..., unnoted_owner: _Optional[str] = ..., given_back: bool = ...) -> None: ...

class Survived(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StepCompleted(_message.Message):
    __slots__ = ("attempt", "started_at_ms", "host", "result", "failure", "replaced", "duration_ms", "of_sub_run", "log_tail")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    OF_SUB_RUN_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    started_at_ms: int
    host: str
    result: Payload
    failure: Failure
    replaced: Failure
    duration_ms: int
    of_sub_run: bool
    log_tail: _containers.RepeatedCompositeFieldContainer[LogLine]
    def __init__(self, attempt: _Optional[int] = ..., started_at_ms: _Optional[int] = ..., host: _Optional[str] = ..., result: _Optional[_Union[Payload, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., replaced: _Optional[_Union[Failure, _Mapping]] = ..., duration_ms: _Optional[int] = ..., of_sub_run: bool = ..., log_tail: _Optional[_Iterable[_Union[LogLine, _Mapping]]] = ...) -> None: ...

class AttemptFailed(_message.Message):
    __slots__ = ("attempt", "failure", "retry_at_ms", "started_at_ms", "host", "delay_ms", "duration_ms")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AT_MS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    failure: Failure
    retry_at_ms: int
    started_at_ms: int
    host: str
    delay_ms: int
    duration_ms: int
    def __init__(self, attempt: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., retry_at_ms: _Optional[int] = ..., started_at_ms: _Optional[int] = ..., host: _Optional[str] = ..., delay_ms: _Optional[int] = ..., duration_ms: _Optional[int] = ...) -> None: ...

class TimerSet(_message.Message):
    __slots__ = ("fire_at_ms", "duration_ms")
    FIRE_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    fire_at_ms: int
    duration_ms: int
    def __init__(self, fire_at_ms: _Optional[int] = ..., duration_ms: _Optional[int] = ...) -> None: ...

class SubRunStarted(_message.Message):
    __slots__ = ("kind", "key", "flow", "inputs", "max_concurrency", "variables_json", "overrides_json", "index")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    FLOW_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_JSON_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_JSON_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    kind: SubRunKind
    key: str
    flow: Payload
    inputs: Payload
    max_concurrency: int
    variables_json: bytes
    overrides_json: bytes
    index: int
    def __init__(self, kind: _Optional[_Union[SubRunKind, str]] = ..., key: _Optional[str] = ..., flow: _Optional[_Union[Payload, _Mapping]] = ..., inputs: _Optional[_Union[Payload, _Mapping]] = ..., max_concurrency: _Optional[int] = ..., variables_json: _Optional[bytes] = ..., overrides_json: _Optional[bytes] = ..., index: _Optional[int] = ...) -> None: ...

class InboxTaken(_message.Message):
    __slots__ = ("id", "cancel", "signal")
    ID_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    id: str
    cancel: bool
    signal: Signal
    def __init__(self, id: _Optional[str] = ..., cancel: bool = ..., signal: _Optional[_Union[Signal, _Mapping]] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("name", "payload")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    payload: Payload
    def __init__(self, name: _Optional[str] = ..., payload: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class SignalAwaited(_message.Message):
    __slots__ = ("name", "until_ms", "timeout_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    until_ms: int
    timeout_ms: int
    def __init__(self, name: _Optional[str] = ..., until_ms: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class RunCompleted(_message.Message):
    __slots__ = ("status", "failure")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    status: RunStatus
    failure: Failure
    def __init__(self, status: _Optional[_Union[RunStatus, str]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...
