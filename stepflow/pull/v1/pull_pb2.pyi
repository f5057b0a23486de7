from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_STATUS_UNSPECIFIED: _ClassVar[TaskStatus]
    TASK_STATUS_IN_PROGRESS: _ClassVar[TaskStatus]
    TASK_STATUS_ALREADY_CLAIMED: _ClassVar[TaskStatus]

class ExecutionStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTION_STATUS_UNSPECIFIED: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_RUNNING: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_COMPLETED: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_FAILED: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_CANCELLED: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_PAUSED: _ClassVar[ExecutionStatus]
    EXECUTION_STATUS_RECOVERY_FAILED: _ClassVar[ExecutionStatus]

class ResultOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_ORDER_UNSPECIFIED: _ClassVar[ResultOrder]
    RESULT_ORDER_BY_INDEX: _ClassVar[ResultOrder]
    RESULT_ORDER_BY_COMPLETION: _ClassVar[ResultOrder]

class TaskErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_ERROR_CODE_UNSPECIFIED: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_TIMEOUT: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_INVALID_INPUT: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_COMPONENT_FAILED: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_CANCELLED: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_UNREACHABLE: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_COMPONENT_NOT_FOUND: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_RESOURCE_UNAVAILABLE: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_EXPRESSION_FAILURE: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_ORCHESTRATOR_ERROR: _ClassVar[TaskErrorCode]
    TASK_ERROR_CODE_WORKER_ERROR: _ClassVar[TaskErrorCode]
TASK_STATUS_UNSPECIFIED: TaskStatus
TASK_STATUS_IN_PROGRESS: TaskStatus
TASK_STATUS_ALREADY_CLAIMED: TaskStatus
EXECUTION_STATUS_UNSPECIFIED: ExecutionStatus
EXECUTION_STATUS_RUNNING: ExecutionStatus
EXECUTION_STATUS_COMPLETED: ExecutionStatus
EXECUTION_STATUS_FAILED: ExecutionStatus
EXECUTION_STATUS_CANCELLED: ExecutionStatus
EXECUTION_STATUS_PAUSED: ExecutionStatus
EXECUTION_STATUS_RECOVERY_FAILED: ExecutionStatus
RESULT_ORDER_UNSPECIFIED: ResultOrder
RESULT_ORDER_BY_INDEX: ResultOrder
RESULT_ORDER_BY_COMPLETION: ResultOrder
TASK_ERROR_CODE_UNSPECIFIED: TaskErrorCode
TASK_ERROR_CODE_TIMEOUT: TaskErrorCode
TASK_ERROR_CODE_INVALID_INPUT: TaskErrorCode
TASK_ERROR_CODE_COMPONENT_FAILED: TaskErrorCode
TASK_ERROR_CODE_CANCELLED: TaskErrorCode
TASK_ERROR_CODE_UNREACHABLE: TaskErrorCode
TASK_ERROR_CODE_COMPONENT_NOT_FOUND: TaskErrorCode
TASK_ERROR_CODE_RESOURCE_UNAVAILABLE: TaskErrorCode
TASK_ERROR_CODE_EXPRESSION_FAILURE: TaskErrorCode
TASK_ERROR_CODE_ORCHESTRATOR_ERROR: TaskErrorCode
TASK_ERROR_CODE_WORKER_ERROR: TaskErrorCode

class PullTasksRequest(_message.Message):
    __slots__ = ("queue_name", "worker_id")
    QUEUE_NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    queue_name: str
    worker_id: str
    def __init__(self, queue_name: _Optional[str] = ..., worker_id: _Optional[str] = ...) -> None: ...

class TaskAssignment(_message.Message):
    __slots__ = ("task_id", "execute", "list_components", "context", "heartbeat_interval_secs")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTE_FIELD_NUMBER: _ClassVar[int]
    LIST_COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_SECS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    execute: ComponentExecuteRequest
    list_components: ListComponentsRequest
    context: TaskContext
    heartbeat_interval_secs: int
    def __init__(self, task_id: _Optional[str] = ..., execute: _Optional[_Union[ComponentExecuteRequest, _Mapping]] = ..., list_components: _Optional[_Union[ListComponentsRequest, _Mapping]] = ..., context: _Optional[_Union[TaskContext, _Mapping]] = ..., heartbeat_interval_secs: _Optional[int] = ...) -> None: ...

class ListComponentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TaskContext(_message.Message):
    __slots__ = ("orchestrator_service_url", "root_run_id")
    ORCHESTRATOR_SERVICE_URL_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    orchestrator_service_url: str
    root_run_id: str
    def __init__(self, orchestrator_service_url: _Optional[str] = ..., root_run_id: _Optional[str] = ...) -> None: ...

class ComponentExecuteRequest(_message.Message):
    __slots__ = ("component_id", "input", "attempt", "observability", "path_params", "idempotency_key", "timeout_ms", "item", "takes_logs")
    class PathParamsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    COMPONENT_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OBSERVABILITY_FIELD_NUMBER: _ClassVar[int]
    PATH_PARAMS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    TAKES_LOGS_FIELD_NUMBER: _ClassVar[int]
    component_id: str
    input: _struct_pb2.Value
    attempt: int
    observability: ObservabilityContext
    path_params: _containers.ScalarMap[str, str]
    idempotency_key: str
    timeout_ms: int
    item: int
    takes_logs: bool
    def __init__(self, component_id: _Optional[str] = ..., input: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., attempt: _Optional[int] = ..., observability: _Optional[_Union[ObservabilityContext, _Mapping]] = ..., path_params: _Optional[_Mapping[str, str]] = ..., idempotency_key: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., item: _Optional[int] = ..., takes_logs: bool = ...) -> None: ...

class ObservabilityContext(_message.Message):
    __slots__ = ("trace_id", "span_id", "run_id", "flow_id", "step_id")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    trace_id: str
    span_id: str
    run_id: str
    flow_id: str
    step_id: str
    def __init__(self, trace_id: _Optional[str] = ..., span_id: _Optional[str] = ..., run_id: _Optional[str] = ..., flow_id: _Optional[str] = ..., step_id: _Optional[str] = ...) -> None: ...

class GetOrchestratorForRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetOrchestratorForRunResponse(_message.Message):
    __slots__ = ("orchestrator_service_url",)
    ORCHESTRATOR_SERVICE_URL_FIELD_NUMBER: _ClassVar[int]
    orchestrator_service_url: str
    def __init__(self, orchestrator_service_url: _Optional[str] = ...) -> None: ...

class CompleteTaskRequest(_message.Message):
    __slots__ = ("task_id", "response", "error", "list_components", "run_id", "log")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LIST_COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    response: ComponentExecuteResponse
    error: TaskError
    list_components: ListComponentsResult
    run_id: str
    log: TaskLog
    def __init__(self, task_id: _Optional[str] = ..., response: _Optional[_Union[ComponentExecuteResponse, _Mapping]] = ..., error: _Optional[_Union[TaskError, _Mapping]] = ..., list_components: _Optional[_Union[ListComponentsResult, _Mapping]] = ..., run_id: _Optional[str] = ..., log: _Optional[_Union[TaskLog, _Mapping]] = ...) -> None: ...

class CompleteTaskHead(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class CompleteTaskResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ComponentExecuteResponse(_message.Message):
    __slots__ = ("output",)
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    output: _struct_pb2.Value
    def __init__(self, output: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...

class TaskError(_message.Message):
    __slots__ = ("code", "message", "data")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    code: TaskErrorCode
    message: str
    data: _struct_pb2.Struct
    def __init__(self, code: _Optional[_Union[TaskErrorCode, str]] = ..., message: _Optional[str] = ..., data: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListComponentsResult(_message.Message):
    __slots__ = ("components",)
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    components: _containers.RepeatedCompositeFieldContainer[ComponentInfo]
    def __init__(self, components: _Optional[_Iterable[_Union[ComponentInfo, _Mapping]]] = ...) -> None: ...

class ComponentInfo(_message.Message):
    __slots__ = ("component_id", "description", "input_schema", "output_schema", "path")
    COMPONENT_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    component_id: str
    description: str
    input_schema: str
    output_schema: str
    path: str
    def __init__(self, component_id: _Optional[str] = ..., description: _Optional[str] = ..., input_schema: _Optional[str] = ..., output_schema: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class TaskHeartbeatRequest(_message.Message):
    __slots__ = ("task_id", "worker_id", "progress", "status_message", "run_id", "queued", "log")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STATUS_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    worker_id: str
    progress: float
    status_message: str
    run_id: str
    queued: bool
    log: TaskLog
    def __init__(self, task_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., progress: _Optional[float] = ..., status_message: _Optional[str] = ..., run_id: _Optional[str] = ..., queued: bool = ..., log: _Optional[_Union[TaskLog, _Mapping]] = ...) -> None: ...

class TaskLog(_message.Message):
    __slots__ = ("lines", "dropped")
    LINES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedCompositeFieldContainer[TaskLogLine]
    dropped: int
    def __init__(self, lines: _Optional[_Iterable[_Union[TaskLogLine, _Mapping]]] = ..., dropped: _Optional[int] = ...) -> None: ...

class TaskLogLine(_message.Message):
    __slots__ = ("at_ms", "level", "text")
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    at_ms: int
    level: str
    text: str
    def __init__(self, at_ms: _Optional[int] = ..., level: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class TaskHeartbeatResponse(_message.Message):
    __slots__ = ("should_abort", "status")
    SHOULD_ABORT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    should_abort: bool
    status: TaskStatus
    def __init__(self, should_abort: bool = ..., status: _Optional[_Union[TaskStatus, str]] = ...) -> None: ...

class OrchestratorSubmitRunRequest(_message.Message):
    __slots__ = ("run_request", "subflow_key", "root_run_id")
    RUN_REQUEST_FIELD_NUMBER: _ClassVar[int]
    SUBFLOW_KEY_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_request: CreateRunRequest
    subflow_key: str
    root_run_id: str
    def __init__(self, run_request: _Optional[_Union[CreateRunRequest, _Mapping]] = ..., subflow_key: _Optional[str] = ..., root_run_id: _Optional[str] = ...) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("flow_id", "input", "overrides", "variables", "max_concurrency", "wait", "timeout_secs")
    class VariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _struct_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECS_FIELD_NUMBER: _ClassVar[int]
    flow_id: str
    input: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Value]
    overrides: _struct_pb2.Struct
    variables: _containers.MessageMap[str, _struct_pb2.Value]
    max_concurrency: int
    wait: bool
    timeout_secs: int
    def __init__(self, flow_id: _Optional[str] = ..., input: _Optional[_Iterable[_Union[_struct_pb2.Value, _Mapping]]] = ..., overrides: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., variables: _Optional[_Mapping[str, _struct_pb2.Value]] = ..., max_concurrency: _Optional[int] = ..., wait: bool = ..., timeout_secs: _Optional[int] = ...) -> None: ...

class OrchestratorGetRunRequest(_message.Message):
    __slots__ = ("run_id", "wait", "include_results", "result_order", "timeout_secs", "root_run_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_RESULTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_ORDER_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECS_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    wait: bool
    include_results: bool
    result_order: ResultOrder
    timeout_secs: int
    root_run_id: str
    def __init__(self, run_id: _Optional[str] = ..., wait: bool = ..., include_results: bool = ..., result_order: _Optional[_Union[ResultOrder, str]] = ..., timeout_secs: _Optional[int] = ..., root_run_id: _Optional[str] = ...) -> None: ...

class OrchestratorRunStatus(_message.Message):
    __slots__ = ("run_id", "flow_id", "flow_name", "status", "items", "created_at", "completed_at", "results", "root_run_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ROOT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    flow_id: str
    flow_name: str
    status: ExecutionStatus
    items: ItemStatistics
    created_at: _timestamp_pb2.Timestamp
    completed_at: _timestamp_pb2.Timestamp
    results: _containers.RepeatedCompositeFieldContainer[ItemResult]
    root_run_id: str
    def __init__(self, run_id: _Optional[str] = ..., flow_id: _Optional[str] = ..., flow_name: _Optional[str] = ..., status: _Optional[_Union[ExecutionStatus, str]] = ..., items: _Optional[_Union[ItemStatistics, _Mapping]] = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., completed_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., results: _Optional[_Iterable[_Union[ItemResult, _Mapping]]] = ..., root_run_id: _Optional[str] = ...) -> None: ...

class ItemStatistics(_message.Message):
    __slots__ = ("total", "completed", "running", "failed", "cancelled")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    total: int
    completed: int
    running: int
    failed: int
    cancelled: int
    def __init__(self, total: _Optional[int] = ..., completed: _Optional[int] = ..., running: _Optional[int] = ..., failed: _Optional[int] = ..., cancelled: _Optional[int] = ...) -> None: ...

class ItemResult(_message.Message):
    __slots__ = ("item_index", "status", "output", "error_message", "error_code")
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    item_index: int
    status: ExecutionStatus
    output: _struct_pb2.Value
    error_message: str
    error_code: TaskErrorCode
    def __init__(self, item_index: _Optional[int] = ..., status: _Optional[_Union[ExecutionStatus, str]] = ..., output: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., error_message: _Optional[str] = ..., error_code: _Optional[_Union[TaskErrorCode, str]] = ...) -> None: ...

class PutBlobRequest(_message.Message):
    __slots__ = ("json_data", "raw_data", "blob_type", "filename", "content_type")
    JSON_DATA_FIELD_NUMBER: _ClassVar[int]
    RAW_DATA_FIELD_NUMBER: _ClassVar[int]
    BLOB_TYPE_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    json_data: _struct_pb2.Value
    raw_data: bytes
    blob_type: str
    filename: str
    content_type: str
    def __init__(self, json_data: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., raw_data: _Optional[bytes] = ..., blob_type: _Optional[str] = ..., filename: _Optional[str] = ..., content_type: _Optional[str] = ...) -> None: ...

class PutBlobResponse(_message.Message):
    __slots__ = ("blob_id", "filename")
    BLOB_ID_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    blob_id: str
    filename: str
    def __init__(self, blob_id: _Optional[str] = ..., filename: _Optional[str] = ...) -> None: ...

class GetBlobRequest(_message.Message):
    __slots__ = ("blob_id",)
    BLOB_ID_FIELD_NUMBER: _ClassVar[int]
    blob_id: str
    def __init__(self, blob_id: _Optional[str] = ...) -> None: ...

class GetBlobResponse(_message.Message):
    __slots__ = ("json_data", "raw_data", "blob_type", "blob_id", "filename", "content_type")
    JSON_DATA_FIELD_NUMBER: _ClassVar[int]
    RAW_DATA_FIELD_NUMBER: _ClassVar[int]
    BLOB_TYPE_FIELD_NUMBER: _ClassVar[int]
    BLOB_ID_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    json_data: _struct_pb2.Value
    raw_data: bytes
    blob_type: str
    blob_id: str
    filename: str
    content_type: str
    def __init__(self, json_data: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., raw_data: _Optional[bytes] = ..., blob_type: _Optional[str] = ..., blob_id: _Optional[str] = ..., filename: _Optional[str] = ..., content_type: _Optional[str] = ...) -> None: ...
