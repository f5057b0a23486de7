from stepflow.mesh.v1 import values_pb2 as _values_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Component(_message.Message):
    __slots__ = ("plugin", "component", "path", "description", "input_schema", "output_schema", "host_ids")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    HOST_IDS_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    component: str
    path: str
    description: str
    input_schema: _values_pb2.Value
    output_schema: _values_pb2.Value
    host_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, plugin: _Optional[str] = ..., component: _Optional[str] = ..., path: _Optional[str] = ..., description: _Optional[str] = ..., input_schema: _Optional[_Union[_values_pb2.Value, _Mapping]] = ..., output_schema: _Optional[_Union[_values_pb2.Value, _Mapping]] = ..., host_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ListComponentsRequest(_message.Message):
    __slots__ = ("plugin", "include_schemas", "value_form")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SCHEMAS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FORM_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    include_schemas: bool
    value_form: _values_pb2.ValueForm
    def __init__(self, plugin: _Optional[str] = ..., include_schemas: bool = ..., value_form: _Optional[_Union[_values_pb2.ValueForm, str]] = ...) -> None: ...

class ListComponentsResponse(_message.Message):
    __slots__ = ("components",)
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    components: _containers.RepeatedCompositeFieldContainer[Component]
    def __init__(self, components: _Optional[_Iterable[_Union[Component, _Mapping]]] = ...) -> None: ...

class GetComponentRequest(_message.Message):
    __slots__ = ("plugin", "component", "value_form")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FORM_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    component: str
    value_form: _values_pb2.ValueForm
    def __init__(self, plugin: _Optional[str] = ..., component: _Optional[str] = ..., value_form: _Optional[_Union[_values_pb2.ValueForm, str]] = ...) -> None: ...

class GetComponentResponse(_message.Message):
    __slots__ = ("component",)
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    component: Component
    def __init__(self, component: _Optional[_Union[Component, _Mapping]] = ...) -> None: ...

class RestartPluginRequest(_message.Message):
    __slots__ = ("plugin", "host_id")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    host_id: str
    def __init__(self, plugin: _Optional[str] = ..., host_id: _Optional[str] = ...) -> None: ...

class RestartPluginResponse(_message.Message):
    __slots__ = ("hosts",)
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedCompositeFieldContainer[HostRestart]
    def __init__(self, hosts: _Optional[_Iterable[_Union[HostRestart, _Mapping]]] = ...) -> None: ...

class HostRestart(_message.Message):
    __slots__ = ("host_id", "outcome", "detail")
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    outcome: str
    detail: str
    def __init__(self, host_id: _Optional[str] = ..., outcome: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
