from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("leader_id", "control_plane_id", "executors", "hosts", "runs_pending", "obstacles", "warnings", "value_bytes_max", "value_waiting", "store")
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    CONTROL_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    RUNS_PENDING_FIELD_NUMBER: _ClassVar[int]
    OBSTACLES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    VALUE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    VALUE_WAITING_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    leader_id: str
    control_plane_id: str
    executors: _containers.RepeatedCompositeFieldContainer[ExecutorInfo]
    hosts: _containers.RepeatedCompositeFieldContainer[HostInfo]
    runs_pending: int
    obstacles: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    value_bytes_max: int
    value_waiting: int
    store: StoreInfo
    def __init__(self, leader_id: _Optional[str] = ..., control_plane_id: _Optional[str] = ..., executors: _Optional[_Iterable[_Union[ExecutorInfo, _Mapping]]] = ..., hosts: _Optional[_Iterable[_Union[HostInfo, _Mapping]]] = ..., runs_pending: _Optional[int] = ..., obstacles: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ..., value_bytes_max: _Optional[int] = ..., value_waiting: _Optional[int] = ..., store: _Optional[_Union[StoreInfo, _Mapping]] = ...) -> None: ...

class StoreInfo(_message.Message):
    __slots__ = ("bytes_in_use", "bytes_allocated", "quota_bytes", "bytes_in_per_s", "bytes_out_per_s", "runs_in_per_s", "runs_out_per_s", "packing_lag_ms", "segments", "packed_runs", "packed_bytes", "inline_bytes_max", "runs_per_s_max", "slowed")
    BYTES_IN_USE_FIELD_NUMBER: _ClassVar[int]
    BYTES_ALLOCATED_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_PER_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_PER_S_FIELD_NUMBER: _ClassVar[int]
    RUNS_IN_PER_S_FIELD_NUMBER: _ClassVar[int]
    RUNS_OUT_PER_S_FIELD_NUMBER: _ClassVar[int]
    PACKING_LAG_MS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    PACKED_RUNS_FIELD_NUMBER: _ClassVar[int]
    PACKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    INLINE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    RUNS_PER_S_MAX_FIELD_NUMBER: _ClassVar[int]
    SLOWED_FIELD_NUMBER: _ClassVar[int]
    bytes_in_use: int
    bytes_allocated: int
    quota_bytes: int
    bytes_in_per_s: float
    bytes_out_per_s: float
    runs_in_per_s: float
    runs_out_per_s: float
    packing_lag_ms: int
    segments: int
    packed_runs: int
    packed_bytes: int
    inline_bytes_max: int
    runs_per_s_max: float
    slowed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bytes_in_use: _Optional[int] = ..., bytes_allocated: _Optional[int] = ..., quota_bytes: _Optional[int] = ..., bytes_in_per_s: _Optional[float] = ..., bytes_out_per_s: _Optional[float] = ..., runs_in_per_s: _Optional[float] = ..., runs_out_per_s: _Optional[float] = ..., packing_lag_ms: _Optional[int] = ..., segments: _Optional[int] = ..., packed_runs: _Optional[int] = ..., packed_bytes: _Optional[int] = ..., inline_bytes_max: _Optional[int] = ..., runs_per_s_max: _Optional[float] = ..., slowed: _Optional[_Iterable[str]] = ...) -> None: ...

class ExecutorInfo(_message.Message):
    __slots__ = ("executor_id", "address", "runs", "runs_max", "engine_version", "draining", "blob_error", "value_bytes_max", "value_waiting")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    RUNS_MAX_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    BLOB_ERROR_FIELD_NUMBER: _ClassVar[int]
    VALUE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    VALUE_WAITING_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    address: str
    runs: int
    runs_max: int
    engine_version: int
    draining: bool
    blob_error: str
    value_bytes_max: int
    value_waiting: int
    def __init__(self, executor_id: _Optional[str] = ..., address: _Optional[str] = ..., runs: _Optional[int] = ..., runs_max: _Optional[int] = ..., engine_version: _Optional[int] = ..., draining: bool = ..., blob_error: _Optional[str] = ..., value_bytes_max: _Optional[int] = ..., value_waiting: _Optional[int] = ...) -> None: ...

class HostInfo(_message.Message):
    __slots__ = ("host_id", "address", "capacity", "draining", "plugins", "pool", "blob_error", "value_bytes_max", "value_waiting")
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    BLOB_ERROR_FIELD_NUMBER: _ClassVar[int]
    VALUE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    VALUE_WAITING_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    address: str
    capacity: int
    draining: bool
    plugins: _containers.RepeatedCompositeFieldContainer[PluginInfo]
    pool: str
    blob_error: str
    value_bytes_max: int
    value_waiting: int
    def __init__(self, host_id: _Optional[str] = ..., address: _Optional[str] = ..., capacity: _Optional[int] = ..., draining: bool = ..., plugins: _Optional[_Iterable[_Union[PluginInfo, _Mapping]]] = ..., pool: _Optional[str] = ..., blob_error: _Optional[str] = ..., value_bytes_max: _Optional[int] = ..., value_waiting: _Optional[int] = ...) -> None: ...

class PluginInfo(_message.Message):
    __slots__ = ("plugin", "type", "state", "last_error", "components", "restarts")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    type: str
    state: str
    last_error: str
    components: int
    restarts: int
    def __init__(self, plugin: _Optional[str] = ..., type: _Optional[str] = ..., state: _Optional[str] = ..., last_error: _Optional[str] = ..., components: _Optional[int] = ..., restarts: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("executor_id", "host_id")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    host_id: str
    def __init__(self, executor_id: _Optional[str] = ..., host_id: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UndrainRequest(_message.Message):
    __slots__ = ("executor_id", "host_id")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    host_id: str
    def __init__(self, executor_id: _Optional[str] = ..., host_id: _Optional[str] = ...) -> None: ...

class UndrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
