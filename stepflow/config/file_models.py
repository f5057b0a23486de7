"""The keys of `stepflow-config.yml`: names, types and defaults, as pydantic models.

Unknown keys are kept as extras; `Problems.read_model` warns about them. Null means absent.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

from stepflow.config.model import (
    BuiltinPlugin,
    GrpcPlugin,
    McpPlugin,
    OpenAISettings,
    PluginConfig,
    RetentionConfig,
    ServerLimits,
    StepflowPlugin,
)
from stepflow.errors import Invalid
from stepflow.flow.duration import DURATION_MS_MAX, DURATION_PATTERN, parse_duration_ms

T = TypeVar("T")

_UPSTREAM = "Setting of upstream's server; accepted, without effect."

AGE_MS_MAX = 36_500 * 86_400_000
"""100 years."""

OPEN_FILES_MIN = 16
"""With fewer, no interpreter starts."""


def _text(value: Any) -> Any:
    """Turn an integer or boolean, as YAML reads them, back into text. A float is refused: digits may be lost."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        raise ValueError("is a number with a fraction; put it in quotes")
    return value


def _duration_ms(value: Any) -> int:
    return _bounded_duration_ms(value, DURATION_MS_MAX)


def _age_ms(value: Any) -> int:
    return _bounded_duration_ms(value, AGE_MS_MAX)


def _bounded_duration_ms(value: Any, max_ms: int) -> int:
    if not isinstance(value, str):
        raise ValueError("must be a duration like `30s` (units: ms, s, m, h, d)")
    try:
        return parse_duration_ms(value, max_ms)
    except Invalid as error:
        raise ValueError(error.message) from None


def _size_bytes(value: Any) -> int:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a size like `512MiB` (units: KiB, MiB, GiB)")
    return int(found[1]) * _UNITS[found[2]]


_UNITS = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_SIZE = re.compile(r"([1-9][0-9]{0,8}) ?(KiB|MiB|GiB)")

_VARIABLE = r"\$\{[A-Za-z_][A-Za-z0-9_]*(?::[^}$\\]*)?\}"
_DEFAULTED = rf"\$\{{[A-Za-z_][A-Za-z0-9_]*(?::(?:[^}}$\\]|{_VARIABLE})*)?\}}"
_TEMPLATE = WithJsonSchema({"type": "string", "pattern": rf"^(?:[^$\\]|\\(?:[^$]|\$|$)|\$(?!\{{)|{_DEFAULTED})*$"})
_TEXT = WithJsonSchema({"anyOf": [_TEMPLATE.json_schema, {"type": ["integer", "boolean"]}]})
_DURATION = WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN})
_AGE = WithJsonSchema({"type": "string", "pattern": rf"^[1-9][0-9]{{0,3}} ?d$|{DURATION_PATTERN}"})
_SIZE_TEXT = WithJsonSchema({"type": "string", "pattern": f"^{_SIZE.pattern}$"})

Text = Annotated[str, BeforeValidator(_text), _TEXT]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
DurationMs = Annotated[int, BeforeValidator(_duration_ms), _DURATION]
AgeMs = Annotated[int, BeforeValidator(_age_ms), _AGE]
SizeBytes = Annotated[int, BeforeValidator(_size_bytes), _SIZE_TEXT]
PositiveInt = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Template = Annotated[str, _TEMPLATE]

# The keys that several types of plugin share. `_TEMPLATE` stays on the type, the description on the field.
Command = Annotated[Template, Field(description="Program that starts the server; `python` is stepflow's interpreter.")]
Args = Annotated[Texts, Field(description="Arguments of the program.")]
Env = Annotated[dict[str, Text], Field(description="Variables added to the environment of the server.")]
InheritEnv = Annotated[bool, Field(description="Pass the whole environment of stepflow to the server.")]
Url = Annotated[Template, Field(description="Address of a server over HTTP.")]
Headers = Annotated[dict[str, Text], Field(description="Headers sent with every request.")]
Processes = Annotated[int, Field(ge=1, le=1_024, description="Processes of this server; calls are spread over them.")]
Concurrency = Annotated[PositiveInt | None, Field(description="Calls in flight per process.")]
StartTimeout = Annotated[DurationMs, Field(description="Limit from the start to the list of components.")]


class Model(BaseModel):
    """Base of all models: strict and immutable, with keys in camelCase."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, alias_generator=to_camel)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: value for name, value in tree.items() if value is not None}
        return tree

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Return the known keys as a file writes them."""
        return tuple(info.alias or name for name, info in cls.model_fields.items())

    def fill(self, target: type[T]) -> T:
        """Build a `target` from the fields that both have."""
        names = [field.name for field in fields(target)]  # type: ignore[arg-type]  # targets are dataclasses
        return target(**{name: getattr(self, name) for name in names})


class PluginModel(Model):
    type: str = Field(description="Type of the plugin.")


class OpenAIModel(Model):
    base_url: Template | None = Field(default=None, description="Address of a service with the chat completions API.")
    api_key_env: Name = Field(default="OPENAI_API_KEY", description="Environment variable with the key.")
    model: str | None = Field(default=None, description="Model, if the input of the step names none.")
    timeout_ms: DurationMs = Field(default=600_000, alias="timeout", description="Longest silence of the service.")


class BuiltinModel(PluginModel):
    openai: OpenAIModel = Field(default=OpenAIModel(), description="Settings of `/builtin/openai`.")

    def plugin(self) -> PluginConfig:
        return BuiltinPlugin(openai=self.openai.fill(OpenAISettings))


class LimitsModel(Model):
    memory_bytes: SizeBytes | None = Field(default=None, alias="memory", description="Memory, such as `512MiB`.")
    open_files: Annotated[int, Field(ge=OPEN_FILES_MIN)] | None = Field(default=None, description="Open files.")


class ServerModel(PluginModel):
    """A plugin whose server a host may start."""

    limits: LimitsModel = Field(default=LimitsModel(), description="What each process of the server may use.")

    def fill(self, target: type[T]) -> T:
        limits = self.limits.fill(ServerLimits)
        return replace(super().fill(target), limits=limits)  # type: ignore[type-var]  # targets are dataclasses


_GIVEN_COMMAND = {"properties": {"command": {"type": "string", "minLength": 1}}, "required": ["command"]}
_GIVEN_URL = {"properties": {"url": {"type": "string", "minLength": 1}}, "required": ["url"]}


def _by_transport(name: str, then: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of what `transport` asks for; the rule itself is in `plugin()` of the model."""
    chosen = {"properties": {"transport": {"const": name}}, "required": ["transport"]}
    return {"if": chosen, "then": then, "else": otherwise}


class McpModel(ServerModel):
    model_config = ConfigDict(
        json_schema_extra=_by_transport(
            "streamable-http",
            _GIVEN_URL,
            _by_transport("stdio", _GIVEN_COMMAND, {"anyOf": [_GIVEN_COMMAND, _GIVEN_URL]}),
        )
    )

    transport: Literal["stdio", "streamable-http"] | None = Field(
        default=None, description="Default: `stdio`, or `streamable-http` if there is only a `url`."
    )
    command: Command = ""
    args: Args = ()
    env: Env = {}
    inherit_env: InheritEnv = False
    url: Url = ""
    headers: Headers = {}
    result: Literal["structured", "content"] = Field(
        default="structured", description="Result of a step: structured content, or the list of content blocks."
    )
    mode: Literal["auto", "legacy", "modern"] = Field(default="auto", description="Era of the protocol.")
    start_timeout_ms: StartTimeout = Field(default=30_000, alias="startTimeout")

    def plugin(self) -> PluginConfig:
        transport = self.transport or ("streamable-http" if self.url and not self.command else "stdio")
        if transport == "stdio" and not self.command:
            raise ValueError("an MCP server over stdio needs a `command`")
        if transport == "streamable-http" and not self.url:
            raise ValueError("an MCP server over streamable HTTP needs a `url`")
        return self.model_copy(update={"transport": transport}).fill(McpPlugin)


class StepflowModel(ServerModel):
    model_config = ConfigDict(
        json_schema_extra=_by_transport("http", {"oneOf": [_GIVEN_COMMAND, _GIVEN_URL]}, _GIVEN_COMMAND)
    )

    transport: Annotated[Literal["stdio", "http", "grpc"], WithJsonSchema({"enum": ["stdio", "http"]})] = Field(
        default="stdio", description="How calls reach the server."
    )
    command: Command = ""
    args: Args = ()
    env: Env = {}
    inherit_env: InheritEnv = False
    url: Url = ""
    headers: Headers = {}
    processes: Processes = 1
    concurrency: Concurrency = None
    start_timeout_ms: StartTimeout = Field(default=30_000, alias="startTimeout")
    request_timeout_ms: DurationMs = Field(
        default=30_000, alias="requestTimeout", description="Limit of requests about the server itself."
    )
    line_bytes_max: Annotated[int, Field(ge=1_024)] | None = Field(
        default=None, description="stdio: the longest line sent to the server."
    )
    blob_threshold: int = Field(
        default=0, ge=0, description="http: larger members of a result are sent as blobs, in bytes; 0 = never."
    )
    blob_host: Name = Field(default="127.0.0.1", description="http: address where the server reaches blobs.")

    def plugin(self) -> PluginConfig:
        if self.transport == "stdio" and not self.command:
            raise ValueError("a StepFlow server over stdio needs a `command`")
        if self.transport == "grpc":
            raise ValueError("workers that pull over gRPC are `type: grpc`, with a `queueName`")
        if self.transport == "http" and bool(self.command) == bool(self.url):
            raise ValueError("a StepFlow server over HTTP needs a `url`, or a `command` that starts it, and not both")
        return self.fill(StepflowPlugin)


class GrpcModel(ServerModel):
    queue_name: Name = Field(description="Queue that the workers pull from.")
    command: Command = ""
    args: Args = ()
    env: Env = {}
    inherit_env: InheritEnv = True
    queue_timeout_secs: PositiveInt = Field(default=30, description="How long a call waits for a worker, in seconds.")
    execution_timeout_secs: PositiveInt | None = Field(default=None, description="Limit of a call, in seconds.")
    listen: Template = Field(default="", description="HOST:PORT where workers connect.")
    advertise: Template = Field(default="", description="HOST:PORT by which workers reach `listen`, if it differs.")
    insecure: bool = Field(default=False, description="Allow a `listen` that other machines reach: there is no TLS.")
    processes: Processes = 1
    concurrency: Concurrency = None
    start_timeout_ms: StartTimeout = Field(default=30_000, alias="startTimeout")

    @property
    def queue_timeout_ms(self) -> int:
        return self.queue_timeout_secs * 1_000

    @property
    def execution_timeout_ms(self) -> int | None:
        return None if self.execution_timeout_secs is None else self.execution_timeout_secs * 1_000

    def plugin(self) -> PluginConfig:
        return self.fill(GrpcPlugin)


class MockModel(PluginModel):
    components: dict[str, Any] = Field(description="Components by path, with schemas and behaviours.")


class RuleModel(Model):
    plugin: str = Field(description="Name of the plugin.")
    conditions: list[Any] = Field(default=[], description="Values that the input of the step must have.")
    component_allow: list[str] | None = Field(default=None, description="The only components of the rule.")
    component_deny: list[str] | None = Field(default=None, description="Components that the rule leaves out.")


class RetryModel(Model):
    transport_max_retries: int = Field(default=3, ge=0, le=2**32 - 1, description="Retries of a call that was lost.")
    backoff: dict[str, Any] | None = Field(default=None, description="Delays before retries.")


class RetentionModel(Model):
    age_ms: AgeMs | None = Field(default=None, alias="age", description="How long ended runs are kept.")
    size_bytes: SizeBytes | None = Field(default=None, alias="bytes", description="Space of ended runs.")

    @property
    def retention(self) -> RetentionConfig:
        return self.fill(RetentionConfig)


class FileModel(Model):
    working_directory: str | None = Field(default=None, description="Folder where servers start; relative to the file.")
    allowed_paths: list[str] = Field(default=[], description="More files and folders that `load_file` may read.")
    plugins: dict[str, Any] = Field(description="Component servers by name.")
    routes: dict[str, Any] = Field(description="Rules by prefix of component paths: which plugin has the components.")
    retry: RetryModel = Field(default=RetryModel(), description="Retries of lost calls.")
    retention: RetentionModel = Field(default=RetentionModel(), description="How long local runs are kept.")
    storage_config: dict[str, Any] = Field(default={}, description=_UPSTREAM)
    lease_manager: Any = Field(default=None, description=_UPSTREAM)
    recovery: Any = Field(default=None, description=_UPSTREAM)
    blob_api: Any = Field(default=None, description=_UPSTREAM)


PLUGIN_MODELS: dict[str, type[BuiltinModel | MockModel | McpModel | StepflowModel | GrpcModel]] = {
    "builtin": BuiltinModel,
    "mock": MockModel,
    "mcp": McpModel,
    "stepflow": StepflowModel,
    "grpc": GrpcModel,
}
