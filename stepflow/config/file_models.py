"""The keys of `stepflow-config.yml`: names, types and defaults, as pydantic models.

Unknown keys are kept as extras; `Problems.read_model` warns about them. Null means absent.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
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
from stepflow.flow.duration import DURATION_MS_MAX, parse_duration_ms

T = TypeVar("T")

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

Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
DurationMs = Annotated[int, BeforeValidator(_duration_ms)]
AgeMs = Annotated[int, BeforeValidator(_age_ms)]
SizeBytes = Annotated[int, BeforeValidator(_size_bytes)]
PositiveInt = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


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
    type: str


class OpenAIModel(Model):
    base_url: str | None = None
    api_key_env: Name = "OPENAI_API_KEY"
    model: str | None = None
    timeout_ms: DurationMs = Field(default=600_000, alias="timeout")


class BuiltinModel(PluginModel):
    openai: OpenAIModel = OpenAIModel()

    def plugin(self) -> PluginConfig:
        return BuiltinPlugin(openai=self.openai.fill(OpenAISettings))


class LimitsModel(Model):
    memory_bytes: SizeBytes | None = Field(default=None, alias="memory")
    open_files: Annotated[int, Field(ge=OPEN_FILES_MIN)] | None = None


class ServerModel(PluginModel):
    """A plugin whose server a host may start."""

    limits: LimitsModel = LimitsModel()

    def fill(self, target: type[T]) -> T:
        limits = self.limits.fill(ServerLimits)
        return replace(super().fill(target), limits=limits)  # type: ignore[type-var]  # targets are dataclasses


class McpModel(ServerModel):
    transport: Literal["stdio", "streamable-http"] | None = None
    command: str = ""
    args: Texts = ()
    env: dict[str, Text] = {}
    inherit_env: bool = False
    url: str = ""
    headers: dict[str, Text] = {}
    result: Literal["structured", "content"] = "structured"
    mode: Literal["auto", "legacy", "modern"] = "auto"
    start_timeout_ms: DurationMs = Field(default=30_000, alias="startTimeout")

    def plugin(self) -> PluginConfig:
        transport = self.transport or ("streamable-http" if self.url and not self.command else "stdio")
        if transport == "stdio" and not self.command:
            raise ValueError("an MCP server over stdio needs a `command`")
        if transport == "streamable-http" and not self.url:
            raise ValueError("an MCP server over streamable HTTP needs a `url`")
        return self.model_copy(update={"transport": transport}).fill(McpPlugin)


class StepflowModel(ServerModel):
    transport: Literal["stdio", "http", "grpc"] = "stdio"
    command: str = ""
    args: Texts = ()
    env: dict[str, Text] = {}
    inherit_env: bool = False
    url: str = ""
    headers: dict[str, Text] = {}
    processes: Annotated[int, Field(ge=1, le=1_024)] = 1
    concurrency: PositiveInt | None = None
    start_timeout_ms: DurationMs = Field(default=30_000, alias="startTimeout")
    request_timeout_ms: DurationMs = Field(default=30_000, alias="requestTimeout")
    line_bytes_max: Annotated[int, Field(ge=1_024)] | None = None
    blob_threshold: Annotated[int, Field(ge=0)] = 0
    blob_host: Name = "127.0.0.1"

    def plugin(self) -> PluginConfig:
        if self.transport == "stdio" and not self.command:
            raise ValueError("a StepFlow server over stdio needs a `command`")
        if self.transport == "grpc":
            raise ValueError("workers that pull over gRPC are `type: grpc`, with a `queueName`")
        if self.transport == "http" and bool(self.command) == bool(self.url):
            raise ValueError("a StepFlow server over HTTP needs a `url`, or a `command` that starts it, and not both")
        return self.fill(StepflowPlugin)


class GrpcModel(ServerModel):
    queue_name: Name
    command: str = ""
    args: Texts = ()
    env: dict[str, Text] = {}
    inherit_env: bool = True
    queue_timeout_secs: PositiveInt = 30
    execution_timeout_secs: PositiveInt | None = None
    listen: str = ""
    advertise: str = ""
    insecure: bool = False
    processes: Annotated[int, Field(ge=1, le=1_024)] = 1
    concurrency: PositiveInt | None = None
    start_timeout_ms: DurationMs = Field(default=30_000, alias="startTimeout")

    @property
    def queue_timeout_ms(self) -> int:
        return self.queue_timeout_secs * 1_000

    @property
    def execution_timeout_ms(self) -> int | None:
        return None if self.execution_timeout_secs is None else self.execution_timeout_secs * 1_000

    def plugin(self) -> PluginConfig:
        return self.fill(GrpcPlugin)


class MockModel(PluginModel):
    components: dict[str, Any]


class RuleModel(Model):
    plugin: str
    conditions: list[Any] = []
    component_allow: list[str] | None = None
    component_deny: list[str] | None = None


class RetryModel(Model):
    transport_max_retries: Annotated[int, Field(ge=0, le=2**32 - 1)] = 3
    backoff: dict[str, Any] | None = None


class RetentionModel(Model):
    age_ms: AgeMs | None = Field(default=None, alias="age")
    size_bytes: SizeBytes | None = Field(default=None, alias="bytes")

    @property
    def retention(self) -> RetentionConfig:
        return self.fill(RetentionConfig)


class FileModel(Model):
    working_directory: str | None = None
    allowed_paths: list[str] = []
    plugins: dict[str, Any]
    routes: dict[str, Any]
    retry: RetryModel = RetryModel()
    retention: RetentionModel = RetentionModel()
    storage_config: dict[str, Any] = {}
    lease_manager: Any = None
    recovery: Any = None
    blob_api: Any = None


PLUGIN_MODELS: dict[str, type[BuiltinModel | MockModel | McpModel | StepflowModel | GrpcModel]] = {
    "builtin": BuiltinModel,
    "mock": MockModel,
    "mcp": McpModel,
    "stepflow": StepflowModel,
    "grpc": GrpcModel,
}
