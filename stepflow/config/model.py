"""What a configuration means: plugins, routes, retries, and the folders that files may be read from.

- A `Config` is complete and consistent: every rule names a plugin, every route key is one segment, every path is
  absolute. Mistakes were errors; ignored keys are listed in `warnings`.
- Plugins keep their texts as written: `variables.resolve_plugin` replaces `$VAR` just before a plugin starts, so no
  secret enters a digest, and a flow can be validated without the secrets of its servers.

Records only. `stepflow.config.load` finds and reads files; no module here imports pydantic but `file_models` and
`reader`, which are loaded with the first file that is not plain.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from stepflow.codec import encode
from stepflow.errors import Invalid
from stepflow.retry import DEFAULT_BACKOFF, Backoff, backoff_to_tree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stepflow.errors import Failure
    from stepflow.routing.table import Rule

DocumentPath: TypeAlias = tuple[str | int, ...]
"""Keys and indices that lead from the root of a configuration to one of its values."""


class ConfigInvalid(Invalid):
    """An unusable configuration. `line` and `column` are 1-based, None for a tree without text."""

    def __init__(
        self, message: str, *, source: str, field: str = "", line: int | None = None, column: int | None = None
    ) -> None:
        super().__init__("CONFIG_INVALID", message, source=source, field=field, line=line, column=column)
        self.source = source
        self.field = field
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAISettings:
    """Where `/builtin/openai` sends requests. None falls back to the environment, then to the service's default."""

    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    model: str | None = None
    timeout_ms: int = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinPlugin:
    type: ClassVar[str] = "builtin"
    openai: OpenAISettings = OpenAISettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class MockBehavior:
    """The reply of a mock component: exactly one member is set."""

    result: bytes | None = None
    """Compact JSON."""
    failure: Failure | None = None
    """A failure that the component declares."""
    error: str | None = None
    """Text of an internal error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MockComponent:
    """A mock component. `behaviors` is keyed by the input, as `mock_key` writes it."""

    input_schema: Any
    output_schema: Any
    behaviors: Mapping[bytes, MockBehavior]


@dataclass(frozen=True, slots=True, kw_only=True)
class MockPlugin:
    type: ClassVar[str] = "mock"
    components: Mapping[str, MockComponent]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Resource limits of each server process and of each of its children. None inherits this process's limit."""

    memory_bytes: int | None = None
    """Address space."""
    open_files: int | None = None


NO_LIMITS = ServerLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class McpPlugin:
    """An MCP server: a command over stdio, or a URL over streamable HTTP, optionally served by a command."""

    type: ClassVar[str] = "mcp"
    transport: Literal["stdio", "streamable-http"] = "stdio"
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit_env: bool = False
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    result: Literal["structured", "content"] = "structured"
    mode: Literal["auto", "legacy", "modern"] = "auto"
    start_timeout_ms: int = 30_000
    limits: ServerLimits = NO_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class StepflowPlugin:
    """A server of the StepFlow protocol: a command, or the URL of a running server (`http`)."""

    type: ClassVar[str] = "stepflow"
    transport: Literal["stdio", "http"] = "stdio"
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit_env: bool = False
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    processes: int = 1
    concurrency: int | None = None
    """Executes in flight per process; None: the default of the server's protocol generation."""
    start_timeout_ms: int = 30_000
    request_timeout_ms: int = 30_000
    """Time limit of every request except executes."""
    line_bytes_max: int | None = None
    """Longest line that the server reads; None: the default of its protocol generation."""
    blob_threshold: int = 0
    """HTTP only: outputs replace members above this size with blobs; 0 disables blobs."""
    blob_host: str = "127.0.0.1"
    """HTTP only: address of this machine from which the server fetches blobs."""
    limits: ServerLimits = NO_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcPlugin:
    """Workers that pull over gRPC: started by a command, connecting to an address, or both."""

    type: ClassVar[str] = "grpc"
    queue_name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit_env: bool = True
    queue_timeout_ms: int = 30_000
    """Longest wait for a worker to connect, and for a worker to claim a call that another worker could claim."""
    execution_timeout_ms: int | None = None
    listen: str = ""
    """HOST:PORT; empty: a free port per started process, or upstream's default port without a command."""
    advertise: str = ""
    """HOST:PORT by which workers reach `listen`; empty: the same address."""
    insecure: bool = False
    """Allow a `listen` address beyond loopback; the protocol has no TLS."""
    processes: int = 1
    concurrency: int | None = None
    """Calls in flight per worker."""
    start_timeout_ms: int = 30_000
    limits: ServerLimits = NO_LIMITS


PluginConfig: TypeAlias = BuiltinPlugin | MockPlugin | McpPlugin | StepflowPlugin | GrpcPlugin


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """The `retry` section: retries of transport errors, and the back-off between all attempts."""

    transport_max_retries: int = 3
    backoff: Backoff = DEFAULT_BACKOFF

    def to_tree(self) -> dict[str, Any]:
        """Return the section as a configuration writes it."""
        return {"transportMaxRetries": self.transport_max_retries, "backoff": backoff_to_tree(self.backoff)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    """The `retention` section: how long the folder of local runs keeps ended runs. None: no bound."""

    age_ms: int | None = None
    """Longest time since the end of a run."""
    size_bytes: int | None = None
    """Space of all ended runs together: databases and blobs."""


KEEP_EVERYTHING = RetentionConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration, ready to use. Paths are absolute."""

    working_directory: Path
    plugins: Mapping[str, PluginConfig]
    routes: Mapping[str, tuple[Rule, ...]]
    retry: RetryConfig | None = None
    """None: the file has no `retry` section."""
    allowed_paths: tuple[Path, ...] = ()
    """Files and folders that `load_file` may read, in addition to the working directory."""
    storage: Mapping[str, Any] = field(default_factory=dict)
    """Upstream's `storageConfig` as written; ignored here."""
    digest: str = ""
    """SHA-256 of the file's meaning: comments, layout and member order do not count."""
    source: Path | None = None
    label: str = "default configuration"
    """Name of the configuration in messages."""
    warnings: tuple[str, ...] = ()
    retention: RetentionConfig = KEEP_EVERYTHING
    """For the folder of local runs; a mesh has options of the control plane instead."""


def digest_of(tree: Any) -> str:
    """Return the digest of a configuration's tree."""
    return hashlib.sha256(encode(tree, order="sorted")).hexdigest()


def mock_key(tree: Any) -> bytes:
    """Return the key of a mock behaviour: the input as compact JSON with sorted members. 1 and 1.0 differ."""
    return encode(tree, order="sorted")


_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_text(path: DocumentPath) -> str:
    """Write a path for people: `plugins.time.args[1]`, `routes["/a"][0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text
