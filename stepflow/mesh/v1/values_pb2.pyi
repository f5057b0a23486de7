from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ValueForm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VALUE_FORM_UNSPECIFIED: _ClassVar[ValueForm]
    VALUE_FORM_VALUE: _ClassVar[ValueForm]
    VALUE_FORM_JSON: _ClassVar[ValueForm]
    VALUE_FORM_BLOB_ID: _ClassVar[ValueForm]
VALUE_FORM_UNSPECIFIED: ValueForm
VALUE_FORM_VALUE: ValueForm
VALUE_FORM_JSON: ValueForm
VALUE_FORM_BLOB_ID: ValueForm

class Value(_message.Message):
    __slots__ = ("value", "json", "blob_id")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    BLOB_ID_FIELD_NUMBER: _ClassVar[int]
    value: _struct_pb2.Value
    json: bytes
    blob_id: str
    def __init__(self, value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ..., json: _Optional[bytes] = ..., blob_id: _Optional[str] = ...) -> None: ...
