from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pressure(_message.Message):
    __slots__ = ("inline_bytes_max", "packing")
    INLINE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    PACKING_FIELD_NUMBER: _ClassVar[int]
    inline_bytes_max: int
    packing: PackingActivity
    def __init__(self, inline_bytes_max: _Optional[int] = ..., packing: _Optional[_Union[PackingActivity, _Mapping]] = ...) -> None: ...

class PackingActivity(_message.Message):
    __slots__ = ("lag_ms", "segments", "runs", "bytes", "bytes_out_per_s", "trouble")
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_PER_S_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    lag_ms: int
    segments: int
    runs: int
    bytes: int
    bytes_out_per_s: float
    trouble: str
    def __init__(self, lag_ms: _Optional[int] = ..., segments: _Optional[int] = ..., runs: _Optional[int] = ..., bytes: _Optional[int] = ..., bytes_out_per_s: _Optional[float] = ..., trouble: _Optional[str] = ...) -> None: ...
