from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RetryPolicy(_message.Message):
    __slots__ = ("transport_retries_max", "backoff")
    TRANSPORT_RETRIES_MAX_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_FIELD_NUMBER: _ClassVar[int]
    transport_retries_max: int
    backoff: Backoff
    def __init__(self, transport_retries_max: _Optional[int] = ..., backoff: _Optional[_Union[Backoff, _Mapping]] = ...) -> None: ...

class Backoff(_message.Message):
    __slots__ = ("kind", "min_delay_ms", "max_delay_ms", "factor")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Backoff.Kind]
        KIND_CONSTANT: _ClassVar[Backoff.Kind]
        KIND_EXPONENTIAL: _ClassVar[Backoff.Kind]
        KIND_FIBONACCI: _ClassVar[Backoff.Kind]
    KIND_UNSPECIFIED: Backoff.Kind
    KIND_CONSTANT: Backoff.Kind
    KIND_EXPONENTIAL: Backoff.Kind
    KIND_FIBONACCI: Backoff.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    MIN_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    kind: Backoff.Kind
    min_delay_ms: int
    max_delay_ms: int
    factor: float
    def __init__(self, kind: _Optional[_Union[Backoff.Kind, str]] = ..., min_delay_ms: _Optional[int] = ..., max_delay_ms: _Optional[int] = ..., factor: _Optional[float] = ...) -> None: ...
