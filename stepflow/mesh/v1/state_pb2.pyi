from stepflow.mesh.v1 import journal_pb2 as _journal_pb2
from stepflow.mesh.v1 import retry_pb2 as _retry_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Policy(_message.Message):
    __slots__ = ("transport_retries_max", "backoff", "concurrency_max", "engine_version", "input_unchecked", "locates_failures")
    TRANSPORT_RETRIES_MAX_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_MAX_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUT_UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    LOCATES_FAILURES_FIELD_NUMBER: _ClassVar[int]
    transport_retries_max: int
    backoff: _retry_pb2.Backoff
    concurrency_max: int
    engine_version: int
    input_unchecked: bool
    locates_failures: bool
    def __init__(self, transport_retries_max: _Optional[int] = ..., backoff: _Optional[_Union[_retry_pb2.Backoff, _Mapping]] = ..., concurrency_max: _Optional[int] = ..., engine_version: _Optional[int] = ..., input_unchecked: bool = ..., locates_failures: bool = ...) -> None: ...

class RunRecord(_message.Message):
    __slots__ = ("flow_id", "flow_name", "inputs", "variables_json", "overrides_json", "policy", "request_hash", "created_at_ms", "items_per_partition", "traceparent", "labels_json", "items_total", "partition_inputs")
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_NAME_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_JSON_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_JSON_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_HASH_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_PER_PARTITION_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    LABELS_JSON_FIELD_NUMBER: _ClassVar[int]
    ITEMS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PARTITION_INPUTS_FIELD_NUMBER: _ClassVar[int]
    flow_id: str
    flow_name: str
    inputs: _containers.RepeatedCompositeFieldContainer[_journal_pb2.Payload]
    variables_json: bytes
    overrides_json: bytes
    policy: Policy
    request_hash: str
    created_at_ms: int
    items_per_partition: int
    traceparent: str
    labels_json: bytes
    items_total: int
    partition_inputs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, flow_id: _Optional[str] = ..., flow_name: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[_journal_pb2.Payload, _Mapping]]] = ..., variables_json: _Optional[bytes] = ..., overrides_json: _Optional[bytes] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., request_hash: _Optional[str] = ..., created_at_ms: _Optional[int] = ..., items_per_partition: _Optional[int] = ..., traceparent: _Optional[str] = ..., labels_json: _Optional[bytes] = ..., items_total: _Optional[int] = ..., partition_inputs: _Optional[_Iterable[str]] = ...) -> None: ...

class PendingRun(_message.Message):
    __slots__ = ("next_partition",)
    NEXT_PARTITION_FIELD_NUMBER: _ClassVar[int]
    next_partition: int
    def __init__(self, next_partition: _Optional[int] = ...) -> None: ...

class PartitionStatus(_message.Message):
    __slots__ = ("status", "items_total", "items_completed", "items_failed", "items_cancelled", "created_at_ms", "completed_at_ms", "failure", "journal_unread", "paused_ms", "queued_reason", "queued_epoch")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FAILED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_UNREAD_FIELD_NUMBER: _ClassVar[int]
    PAUSED_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REASON_FIELD_NUMBER: _ClassVar[int]
    QUEUED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    status: _journal_pb2.RunStatus
    items_total: int
    items_completed: int
    items_failed: int
    items_cancelled: int
    created_at_ms: int
    completed_at_ms: int
    failure: _journal_pb2.Failure
    journal_unread: bool
    paused_ms: int
    queued_reason: str
    queued_epoch: int
    def __init__(self, status: _Optional[_Union[_journal_pb2.RunStatus, str]] = ..., items_total: _Optional[int] = ..., items_completed: _Optional[int] = ..., items_failed: _Optional[int] = ..., items_cancelled: _Optional[int] = ..., created_at_ms: _Optional[int] = ..., completed_at_ms: _Optional[int] = ..., failure: _Optional[_Union[_journal_pb2.Failure, _Mapping]] = ..., journal_unread: bool = ..., paused_ms: _Optional[int] = ..., queued_reason: _Optional[str] = ..., queued_epoch: _Optional[int] = ...) -> None: ...

class RunPauses(_message.Message):
    __slots__ = ("total_ms",)
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    total_ms: int
    def __init__(self, total_ms: _Optional[int] = ...) -> None: ...

class ItemResult(_message.Message):
    __slots__ = ("item", "status", "result", "failure", "parts", "parts_blob", "completed_at_ms", "parts_bytes")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    PARTS_BLOB_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    PARTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    item: int
    status: _journal_pb2.RunStatus
    result: _journal_pb2.Payload
    failure: _journal_pb2.Failure
    parts: ResultParts
    parts_blob: str
    completed_at_ms: int
    parts_bytes: int
    def __init__(self, item: _Optional[int] = ..., status: _Optional[_Union[_journal_pb2.RunStatus, str]] = ..., result: _Optional[_Union[_journal_pb2.Payload, _Mapping]] = ..., failure: _Optional[_Union[_journal_pb2.Failure, _Mapping]] = ..., parts: _Optional[_Union[ResultParts, _Mapping]] = ..., parts_blob: _Optional[str] = ..., completed_at_ms: _Optional[int] = ..., parts_bytes: _Optional[int] = ...) -> None: ...

class ResultParts(_message.Message):
    __slots__ = ("parts", "bytes")
    PARTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[ResultPart]
    bytes: int
    def __init__(self, parts: _Optional[_Iterable[_Union[ResultPart, _Mapping]]] = ..., bytes: _Optional[int] = ...) -> None: ...

class ResultPart(_message.Message):
    __slots__ = ("json", "journal", "blob")
    JSON_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    journal: JournalPart
    blob: BlobPart
    def __init__(self, json: _Optional[bytes] = ..., journal: _Optional[_Union[JournalPart, _Mapping]] = ..., blob: _Optional[_Union[BlobPart, _Mapping]] = ...) -> None: ...

class JournalPart(_message.Message):
    __slots__ = ("first_seq", "index", "offset", "length")
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    first_seq: int
    index: int
    offset: int
    length: int
    def __init__(self, first_seq: _Optional[int] = ..., index: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class BlobPart(_message.Message):
    __slots__ = ("blob", "offset", "length")
    BLOB_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    blob: str
    offset: int
    length: int
    def __init__(self, blob: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class PartitionResults(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ItemResult]
    def __init__(self, items: _Optional[_Iterable[_Union[ItemResult, _Mapping]]] = ...) -> None: ...

class ExecutorSession(_message.Message):
    __slots__ = ("address", "runs_max", "engine_version", "draining", "blob_error", "value_memory")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RUNS_MAX_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    BLOB_ERROR_FIELD_NUMBER: _ClassVar[int]
    VALUE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    address: str
    runs_max: int
    engine_version: int
    draining: bool
    blob_error: str
    value_memory: ValueMemory
    def __init__(self, address: _Optional[str] = ..., runs_max: _Optional[int] = ..., engine_version: _Optional[int] = ..., draining: bool = ..., blob_error: _Optional[str] = ..., value_memory: _Optional[_Union[ValueMemory, _Mapping]] = ...) -> None: ...

class ValueMemory(_message.Message):
    __slots__ = ("bytes_max", "waiting")
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    bytes_max: int
    waiting: int
    def __init__(self, bytes_max: _Optional[int] = ..., waiting: _Optional[int] = ...) -> None: ...

class HostSession(_message.Message):
    __slots__ = ("address", "capacity", "draining", "rules_hash", "plugins", "route_hashes", "pool", "blob_error", "value_memory")
    class RouteHashesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    RULES_HASH_FIELD_NUMBER: _ClassVar[int]
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_HASHES_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    BLOB_ERROR_FIELD_NUMBER: _ClassVar[int]
    VALUE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    address: str
    capacity: int
    draining: bool
    rules_hash: str
    plugins: _containers.RepeatedCompositeFieldContainer[PluginListing]
    route_hashes: _containers.ScalarMap[str, str]
    pool: str
    blob_error: str
    value_memory: ValueMemory
    def __init__(self, address: _Optional[str] = ..., capacity: _Optional[int] = ..., draining: bool = ..., rules_hash: _Optional[str] = ..., plugins: _Optional[_Iterable[_Union[PluginListing, _Mapping]]] = ..., route_hashes: _Optional[_Mapping[str, str]] = ..., pool: _Optional[str] = ..., blob_error: _Optional[str] = ..., value_memory: _Optional[_Union[ValueMemory, _Mapping]] = ...) -> None: ...

class PluginListing(_message.Message):
    __slots__ = ("plugin", "type", "complete", "state", "last_error", "components", "restarts", "digest", "conflict")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[PluginListing.State]
        STATE_STARTING: _ClassVar[PluginListing.State]
        STATE_READY: _ClassVar[PluginListing.State]
        STATE_FAILED: _ClassVar[PluginListing.State]
        STATE_RESTARTING: _ClassVar[PluginListing.State]
    STATE_UNSPECIFIED: PluginListing.State
    STATE_STARTING: PluginListing.State
    STATE_READY: PluginListing.State
    STATE_FAILED: PluginListing.State
    STATE_RESTARTING: PluginListing.State
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFLICT_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    type: str
    complete: bool
    state: PluginListing.State
    last_error: str
    components: _containers.RepeatedCompositeFieldContainer[ComponentListing]
    restarts: int
    digest: str
    conflict: bool
    def __init__(self, plugin: _Optional[str] = ..., type: _Optional[str] = ..., complete: bool = ..., state: _Optional[_Union[PluginListing.State, str]] = ..., last_error: _Optional[str] = ..., components: _Optional[_Iterable[_Union[ComponentListing, _Mapping]]] = ..., restarts: _Optional[int] = ..., digest: _Optional[str] = ..., conflict: bool = ...) -> None: ...

class ComponentListing(_message.Message):
    __slots__ = ("component", "path", "description", "input_schema_json", "output_schema_json")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUT_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    component: str
    path: str
    description: str
    input_schema_json: bytes
    output_schema_json: bytes
    def __init__(self, component: _Optional[str] = ..., path: _Optional[str] = ..., description: _Optional[str] = ..., input_schema_json: _Optional[bytes] = ..., output_schema_json: _Optional[bytes] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("handed_over", "taken_from", "given_back", "refused_by")
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FROM_FIELD_NUMBER: _ClassVar[int]
    GIVEN_BACK_FIELD_NUMBER: _ClassVar[int]
    REFUSED_BY_FIELD_NUMBER: _ClassVar[int]
    handed_over: bool
    taken_from: str
    given_back: bool
    refused_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, handed_over: bool = ..., taken_from: _Optional[str] = ..., given_back: bool = ..., refused_by: _Optional[_Iterable[str]] = ...) -> None: ...

class Adopting(_message.Message):
    __slots__ = ("count", "executor_id")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    count: int
    executor_id: str
    def __init__(self, count: _Optional[int] = ..., executor_id: _Optional[str] = ...) -> None: ...

class InboxMessage(_message.Message):
    __slots__ = ("cancel", "signal", "item")
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    cancel: bool
    signal: _journal_pb2.Signal
    item: int
    def __init__(self, cancel: bool = ..., signal: _Optional[_Union[_journal_pb2.Signal, _Mapping]] = ..., item: _Optional[int] = ...) -> None: ...

class FlowName(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[NamedVersion]
    def __init__(self, versions: _Optional[_Iterable[_Union[NamedVersion, _Mapping]]] = ...) -> None: ...

class NamedVersion(_message.Message):
    __slots__ = ("flow_id", "version", "labels", "stored_at_ms")
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STORED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    flow_id: str
    version: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    stored_at_ms: int
    def __init__(self, flow_id: _Optional[str] = ..., version: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., stored_at_ms: _Optional[int] = ...) -> None: ...

class PluginOwner(_message.Message):
    __slots__ = ("pool", "digest")
    POOL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    pool: str
    digest: str
    def __init__(self, pool: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...
