from stepflow.mesh.v1 import values_pb2 as _values_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FlowReference(_message.Message):
    __slots__ = ("flow_id", "named", "document")
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    NAMED_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    flow_id: str
    named: NamedFlow
    document: _values_pb2.Value
    def __init__(self, flow_id: _Optional[str] = ..., named: _Optional[_Union[NamedFlow, _Mapping]] = ..., document: _Optional[_Union[_values_pb2.Value, _Mapping]] = ...) -> None: ...

class NamedFlow(_message.Message):
    __slots__ = ("name", "label")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    label: str
    def __init__(self, name: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class StoreFlowRequest(_message.Message):
    __slots__ = ("document", "validate_only", "label")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    document: _values_pb2.Value
    validate_only: bool
    label: str
    def __init__(self, document: _Optional[_Union[_values_pb2.Value, _Mapping]] = ..., validate_only: bool = ..., label: _Optional[str] = ...) -> None: ...

class StoreFlowResponse(_message.Message):
    __slots__ = ("flow_id", "version", "diagnostics", "stored", "newest_version", "label_from")
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    NEWEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FROM_FIELD_NUMBER: _ClassVar[int]
    flow_id: str
    version: int
    diagnostics: _containers.RepeatedCompositeFieldContainer[FlowDiagnostic]
    stored: bool
    newest_version: int
    label_from: int
    def __init__(self, flow_id: _Optional[str] = ..., version: _Optional[int] = ..., diagnostics: _Optional[_Iterable[_Union[FlowDiagnostic, _Mapping]]] = ..., stored: bool = ..., newest_version: _Optional[int] = ..., label_from: _Optional[int] = ...) -> None: ...

class FlowDiagnostic(_message.Message):
    __slots__ = ("code", "kind", "level", "message", "path", "experimental", "data_json")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEVEL_UNSPECIFIED: _ClassVar[FlowDiagnostic.Level]
        LEVEL_WARNING: _ClassVar[FlowDiagnostic.Level]
        LEVEL_ERROR: _ClassVar[FlowDiagnostic.Level]
        LEVEL_FATAL: _ClassVar[FlowDiagnostic.Level]
    LEVEL_UNSPECIFIED: FlowDiagnostic.Level
    LEVEL_WARNING: FlowDiagnostic.Level
    LEVEL_ERROR: FlowDiagnostic.Level
    LEVEL_FATAL: FlowDiagnostic.Level
    CODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENTAL_FIELD_NUMBER: _ClassVar[int]
    DATA_JSON_FIELD_NUMBER: _ClassVar[int]
    code: int
    kind: str
    level: FlowDiagnostic.Level
    message: str
    path: str
    experimental: bool
    data_json: bytes
    def __init__(self, code: _Optional[int] = ..., kind: _Optional[str] = ..., level: _Optional[_Union[FlowDiagnostic.Level, str]] = ..., message: _Optional[str] = ..., path: _Optional[str] = ..., experimental: bool = ..., data_json: _Optional[bytes] = ...) -> None: ...

class ValidateFlowRequest(_message.Message):
    __slots__ = ("flow", "variables", "overrides", "all_variables", "type_check", "strict")
    class VariablesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _values_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_values_pb2.Value, _Mapping]] = ...) -> None: ...
    FLOW_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    ALL_VARIABLES_FIELD_NUMBER: _ClassVar[int]
    TYPE_CHECK_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    flow: FlowReference
    variables: _containers.MessageMap[str, _values_pb2.Value]
    overrides: _values_pb2.Value
    all_variables: bool
    type_check: bool
    strict: bool
    def __init__(self, flow: _Optional[_Union[FlowReference, _Mapping]] = ..., variables: _Optional[_Mapping[str, _values_pb2.Value]] = ..., overrides: _Optional[_Union[_values_pb2.Value, _Mapping]] = ..., all_variables: bool = ..., type_check: bool = ..., strict: bool = ...) -> None: ...

class ValidateFlowResponse(_message.Message):
    __slots__ = ("flow_id", "diagnostics", "passed")
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    flow_id: str
    diagnostics: _containers.RepeatedCompositeFieldContainer[FlowDiagnostic]
    passed: bool
    def __init__(self, flow_id: _Optional[str] = ..., diagnostics: _Optional[_Iterable[_Union[FlowDiagnostic, _Mapping]]] = ..., passed: bool = ...) -> None: ...

class FlowFindings(_message.Message):
    __slots__ = ("diagnostics", "left_out")
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    diagnostics: _containers.RepeatedCompositeFieldContainer[FlowDiagnostic]
    left_out: int
    def __init__(self, diagnostics: _Optional[_Iterable[_Union[FlowDiagnostic, _Mapping]]] = ..., left_out: _Optional[int] = ...) -> None: ...

class GetFlowRequest(_message.Message):
    __slots__ = ("flow", "value_form")
    FLOW_FIELD_NUMBER: _ClassVar[int]
    VALUE_FORM_FIELD_NUMBER: _ClassVar[int]
    flow: FlowReference
    value_form: _values_pb2.ValueForm
    def __init__(self, flow: _Optional[_Union[FlowReference, _Mapping]] = ..., value_form: _Optional[_Union[_values_pb2.ValueForm, str]] = ...) -> None: ...

class GetFlowResponse(_message.Message):
    __slots__ = ("flow_id", "document")
    FLOW_ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    flow_id: str
    document: _values_pb2.Value
    def __init__(self, flow_id: _Optional[str] = ..., document: _Optional[_Union[_values_pb2.Value, _Mapping]] = ...) -> None: ...

class ListFlowsRequest(_message.Message):
    __slots__ = ("name_prefix", "page_size", "page_token")
    NAME_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name_prefix: str
    page_size: int
    page_token: str
    def __init__(self, name_prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListFlowsResponse(_message.Message):
    __slots__ = ("flows", "next_page_token")
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    flows: _containers.RepeatedCompositeFieldContainer[NamedFlowVersions]
    next_page_token: str
    def __init__(self, flows: _Optional[_Iterable[_Union[NamedFlowVersions, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class NamedFlowVersions(_message.Message):
    __slots__ = ("name", "versions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    versions: _containers.RepeatedCompositeFieldContainer[FlowVersion]
    def __init__(self, name: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[FlowVersion, _Mapping]]] = ...) -> None: ...

class FlowVersion(_message.Message):
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

class DeleteFlowRequest(_message.Message):
    __slots__ = ("name", "label")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    label: str
    def __init__(self, name: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class DeleteFlowResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
