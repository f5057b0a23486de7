from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Formats(_message.Message):
    __slots__ = ("level", "since_ms")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    level: int
    since_ms: int
    def __init__(self, level: _Optional[int] = ..., since_ms: _Optional[int] = ...) -> None: ...
