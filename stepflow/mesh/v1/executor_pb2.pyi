from stepflow.mesh.v1 import journal_pb2 as _journal_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttendRequest(_message.Message):
    __slots__ = ("replica_id",)
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    def __init__(self, replica_id: _Optional[str] = ...) -> None: ...

class AttendResponse(_message.Message):
    __slots__ = ("executor_id",)
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    def __init__(self, executor_id: _Optional[str] = ...) -> None: ...

class FollowRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class FollowRunResponse(_message.Message):
    __slots__ = ("event", "lost")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    event: LiveEvent
    lost: int
    def __init__(self, event: _Optional[_Union[LiveEvent, _Mapping]] = ..., lost: _Optional[int] = ...) -> None: ...

class LiveEvent(_message.Message):
    __slots__ = ("kind", "run_id", "depth", "item", "step_id", "step_index", "component", "attempt", "at_ms", "duration_ms", "failure", "until_ms", "message", "parent", "done", "total", "path")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    kind: str
    run_id: str
    depth: int
    item: int
    step_id: str
    step_index: int
    component: str
    attempt: int
    at_ms: int
    duration_ms: int
    failure: _journal_pb2.Failure
    until_ms: int
    message: str
    parent: LiveParent
    done: float
    total: float
    path: str
    def __init__(self, kind: _Optional[str] = ..., run_id: _Optional[str] = ..., depth: _Optional[int] = ..., item: _Optional[int] = ..., step_id: _Optional[str] = ..., step_index: _Optional[int] = ..., component: _Optional[str] = ..., attempt: _Optional[int] = ..., at_ms: _Optional[int] = ..., duration_ms: _Optional[int] = ..., failure: _Optional[_Union[_journal_pb2.Failure, _Mapping]] = ..., until_ms: _Optional[int] = ..., message: _Optional[str] = ..., parent: _Optional[_Union[LiveParent, _Mapping]] = ..., done: _Optional[float] = ..., total: _Optional[float] = ..., path: _Optional[str] = ...) -> None: ...

class LiveParent(_message.Message):
    __slots__ = ("run_id", "item", "step_index")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    item: int
    step_index: int
    def __init__(self, run_id: _Optional[str] = ..., item: _Optional[int] = ..., step_index: _Optional[int] = ...) -> None: ...

class DrainExecutorRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainExecutorResponse(_message.Message):
    __slots__ = ("handed_over",)
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    handed_over: int
    def __init__(self, handed_over: _Optional[int] = ...) -> None: ...

class UndrainExecutorRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UndrainExecutorResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
