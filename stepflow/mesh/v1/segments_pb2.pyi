from stepflow.mesh.v1 import journal_pb2 as _journal_pb2
from stepflow.mesh.v1 import state_pb2 as _state_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SegmentManifest(_message.Message):
    __slots__ = ("format", "bytes", "runs", "first_run_id", "last_run_id", "fingerprints", "created", "ended_first_ms", "ended_last_ms", "removed", "removed_bytes", "expiring", "stripped", "tail_offset")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    FIRST_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIRST_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_LAST_MS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRING_FIELD_NUMBER: _ClassVar[int]
    STRIPPED_FIELD_NUMBER: _ClassVar[int]
    TAIL_OFFSET_FIELD_NUMBER: _ClassVar[int]
    format: int
    bytes: int
    runs: int
    first_run_id: str
    last_run_id: str
    fingerprints: bytes
    created: _containers.RepeatedCompositeFieldContainer[TimeSpan]
    ended_first_ms: int
    ended_last_ms: int
    removed: _containers.RepeatedScalarFieldContainer[int]
    removed_bytes: int
    expiring: bool
    stripped: bool
    tail_offset: int
    def __init__(self, format: _Optional[int] = ..., bytes: _Optional[int] = ..., runs: _Optional[int] = ..., first_run_id: _Optional[str] = ..., last_run_id: _Optional[str] = ..., fingerprints: _Optional[bytes] = ..., created: _Optional[_Iterable[_Union[TimeSpan, _Mapping]]] = ..., ended_first_ms: _Optional[int] = ..., ended_last_ms: _Optional[int] = ..., removed: _Optional[_Iterable[int]] = ..., removed_bytes: _Optional[int] = ..., expiring: bool = ..., stripped: bool = ..., tail_offset: _Optional[int] = ...) -> None: ...

class TimeSpan(_message.Message):
    __slots__ = ("first_ms", "last_ms")
    FIRST_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_MS_FIELD_NUMBER: _ClassVar[int]
    first_ms: int
    last_ms: int
    def __init__(self, first_ms: _Optional[int] = ..., last_ms: _Optional[int] = ...) -> None: ...

class SegmentList(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[ListedRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[ListedRun, _Mapping]]] = ...) -> None: ...

class ListedRun(_message.Message):
    __slots__ = ("run_id", "number", "created_at_ms", "ended_at_ms", "shown", "status", "items_completed", "items_failed", "items_cancelled", "paused_ms", "partitions", "has_blobs")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FAILED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    PAUSED_MS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    HAS_BLOBS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    number: int
    created_at_ms: int
    ended_at_ms: int
    shown: bytes
    status: _journal_pb2.RunStatus
    items_completed: int
    items_failed: int
    items_cancelled: int
    paused_ms: int
    partitions: int
    has_blobs: bool
    def __init__(self, run_id: _Optional[str] = ..., number: _Optional[int] = ..., created_at_ms: _Optional[int] = ..., ended_at_ms: _Optional[int] = ..., shown: _Optional[bytes] = ..., status: _Optional[_Union[_journal_pb2.RunStatus, str]] = ..., items_completed: _Optional[int] = ..., items_failed: _Optional[int] = ..., items_cancelled: _Optional[int] = ..., paused_ms: _Optional[int] = ..., partitions: _Optional[int] = ..., has_blobs: bool = ...) -> None: ...

class SegmentIds(_message.Message):
    __slots__ = ("run_ids", "body_offsets", "body_bytes", "index_bytes", "index_crc32s", "list_positions", "step_index_bytes", "step_index_crc32s")
    RUN_IDS_FIELD_NUMBER: _ClassVar[int]
    BODY_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    INDEX_BYTES_FIELD_NUMBER: _ClassVar[int]
    INDEX_CRC32S_FIELD_NUMBER: _ClassVar[int]
    LIST_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_CRC32S_FIELD_NUMBER: _ClassVar[int]
    run_ids: _containers.RepeatedScalarFieldContainer[str]
    body_offsets: _containers.RepeatedScalarFieldContainer[int]
    body_bytes: _containers.RepeatedScalarFieldContainer[int]
    index_bytes: _containers.RepeatedScalarFieldContainer[int]
    index_crc32s: _containers.RepeatedScalarFieldContainer[int]
    list_positions: _containers.RepeatedScalarFieldContainer[int]
    step_index_bytes: _containers.RepeatedScalarFieldContainer[int]
    step_index_crc32s: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, run_ids: _Optional[_Iterable[str]] = ..., body_offsets: _Optional[_Iterable[int]] = ..., body_bytes: _Optional[_Iterable[int]] = ..., index_bytes: _Optional[_Iterable[int]] = ..., index_crc32s: _Optional[_Iterable[int]] = ..., list_positions: _Optional[_Iterable[int]] = ..., step_index_bytes: _Optional[_Iterable[int]] = ..., step_index_crc32s: _Optional[_Iterable[int]] = ...) -> None: ...

class BodyIndex(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[BodyKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[BodyKey, _Mapping]]] = ...) -> None: ...

class BodyKey(_message.Message):
    __slots__ = ("key", "bytes", "crc32", "create_revision", "mod_revision", "version")
    KEY_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    CREATE_REVISION_FIELD_NUMBER: _ClassVar[int]
    MOD_REVISION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    key: str
    bytes: int
    crc32: int
    create_revision: int
    mod_revision: int
    version: int
    def __init__(self, key: _Optional[str] = ..., bytes: _Optional[int] = ..., crc32: _Optional[int] = ..., create_revision: _Optional[int] = ..., mod_revision: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class StepIndex(_message.Message):
    __slots__ = ("partitions", "partitions_total", "bytes")
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionSteps]
    partitions_total: int
    bytes: int
    def __init__(self, partitions: _Optional[_Iterable[_Union[PartitionSteps, _Mapping]]] = ..., partitions_total: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class PartitionSteps(_message.Message):
    __slots__ = ("partition", "offset", "rows_total", "rows_per_chunk", "chunk_bytes", "chunk_crc32s", "texts")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_CRC32S_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    partition: int
    offset: int
    rows_total: int
    rows_per_chunk: int
    chunk_bytes: _containers.RepeatedScalarFieldContainer[int]
    chunk_crc32s: _containers.RepeatedScalarFieldContainer[int]
    texts: _containers.RepeatedCompositeFieldContainer[StepText]
    def __init__(self, partition: _Optional[int] = ..., offset: _Optional[int] = ..., rows_total: _Optional[int] = ..., rows_per_chunk: _Optional[int] = ..., chunk_bytes: _Optional[_Iterable[int]] = ..., chunk_crc32s: _Optional[_Iterable[int]] = ..., texts: _Optional[_Iterable[_Union[StepText, _Mapping]]] = ...) -> None: ...

class StepText(_message.Message):
    __slots__ = ("row", "bytes", "crc32")
    ROW_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    row: int
    bytes: int
    crc32: int
    def __init__(self, row: _Optional[int] = ..., bytes: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class StepRows(_message.Message):
    __slots__ = ("rows", "rows_total")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[StepRow]
    rows_total: int
    def __init__(self, rows: _Optional[_Iterable[_Union[StepRow, _Mapping]]] = ..., rows_total: _Optional[int] = ...) -> None: ...

class StepRow(_message.Message):
    __slots__ = ("run_id", "item", "step_id", "step_index", "component", "depth", "status", "attempt", "retries", "started_at_ms", "completed_at_ms", "duration_ms", "failure", "result", "parts", "text_bytes", "path", "skipped_for")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FOR_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    item: int
    step_id: str
    step_index: int
    component: str
    depth: int
    status: _journal_pb2.RunStatus
    attempt: int
    retries: int
    started_at_ms: int
    completed_at_ms: int
    duration_ms: int
    failure: _journal_pb2.Failure
    result: _journal_pb2.Payload
    parts: _state_pb2.ResultParts
    text_bytes: int
    path: str
    skipped_for: str
    def __init__(self, run_id: _Optional[str] = ..., item: _Optional[int] = ..., step_id: _Optional[str] = ..., step_index: _Optional[int] = ..., component: _Optional[str] = ..., depth: _Optional[int] = ..., status: _Optional[_Union[_journal_pb2.RunStatus, str]] = ..., attempt: _Optional[int] = ..., retries: _Optional[int] = ..., started_at_ms: _Optional[int] = ..., completed_at_ms: _Optional[int] = ..., duration_ms: _Optional[int] = ..., failure: _Optional[_Union[_journal_pb2.Failure, _Mapping]] = ..., result: _Optional[_Union[_journal_pb2.Payload, _Mapping]] = ..., parts: _Optional[_Union[_state_pb2.ResultParts, _Mapping]] = ..., text_bytes: _Optional[int] = ..., path: _Optional[str] = ..., skipped_for: _Optional[str] = ...) -> None: ...

class SegmentFooter(_message.Message):
    __slots__ = ("format", "lists", "ids", "named_blobs", "names_any_blob")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    LISTS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    NAMED_BLOBS_FIELD_NUMBER: _ClassVar[int]
    NAMES_ANY_BLOB_FIELD_NUMBER: _ClassVar[int]
    format: int
    lists: _containers.RepeatedCompositeFieldContainer[SegmentBlock]
    ids: SegmentBlock
    named_blobs: bytes
    names_any_blob: bool
    def __init__(self, format: _Optional[int] = ..., lists: _Optional[_Iterable[_Union[SegmentBlock, _Mapping]]] = ..., ids: _Optional[_Union[SegmentBlock, _Mapping]] = ..., named_blobs: _Optional[bytes] = ..., names_any_blob: bool = ...) -> None: ...

class SegmentBlock(_message.Message):
    __slots__ = ("offset", "bytes", "crc32", "runs", "last_created_at_ms", "last_run_id")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    LAST_CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    offset: int
    bytes: int
    crc32: int
    runs: int
    last_created_at_ms: int
    last_run_id: str
    def __init__(self, offset: _Optional[int] = ..., bytes: _Optional[int] = ..., crc32: _Optional[int] = ..., runs: _Optional[int] = ..., last_created_at_ms: _Optional[int] = ..., last_run_id: _Optional[str] = ...) -> None: ...
