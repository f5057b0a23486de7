"""The configuration: plugins, routes, retries, and where files may be read.

Owns finding, loading and describing `stepflow-config.yml`. Promises:
- a `Config` is complete and consistent: every rule names a plugin, every route key is one segment, every path is
  absolute; what could not be understood was an error, what was ignored stands in `warnings`;
- plugins keep their texts as written: `$VAR` is replaced when a plugin is about to start (`Config.plugin`), so that
  no secret is in a digest and a flow can be validated without the secrets of its servers;
- nothing here imports pydantic; the models that read a file are in `config_schema.py`, loaded when there is a file.

It starts nothing and opens no connection.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stepflow.codec import PAYLOAD_BYTES_MAX, encode
from stepflow.errors import Invalid, NotFound
from stepflow.retry import DEFAULT_BACKOFF, Backoff, backoff_to_tree
from stepflow.routing.table import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepflow.errors import Failure

FILE_NAMES = ("stepflow-config.yml", "stepflow-config.yaml", "stepflow_config.yml", "stepflow_config.yaml")
"""Names under which a configuration is found; two of them in one folder are ambiguous."""

TEST_FILE_NAMES = (
    "stepflow-config.test.yml",
    "stepflow-config.test.yaml",
    "stepflow_config.test.yml",
    "stepflow_config.test.yaml",
)
"""Names that `stepflow test` prefers, next to the flow only."""

FILE_BYTES_MAX = PAYLOAD_BYTES_MAX
"""Mock behaviours can make a configuration large; nothing makes it larger than a payload."""


class ConfigInvalid(Invalid):
    """A configuration that cannot be used. `line` and `column` count from 1, None where there is no text."""

    def __init__(
        self, message: str, *, source: str, field: str = "", line: int | None = None, column: int | None = None
    ) -> None:
        super().__init__("CONFIG_INVALID", message, source=source, field=field, line=line, column=column)
        self.source = source
        self.field = field
        self.line = line
        self.column = column


# --- plugins ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAISettings:
    """Where `/builtin/openai` sends requests; None means the environment or the service's own default."""

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
    """What a mock component answers: exactly one of the three.

    `result` is compact JSON; `failure` is what the component declares; `error` the text of an internal error.
    """

    result: bytes | None = None
    failure: Failure | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MockComponent:
    """`behaviors` go by the input as compact JSON with sorted members (`mock_key`)."""

    input_schema: Any
    output_schema: Any
    behaviors: Mapping[bytes, MockBehavior]


@dataclass(frozen=True, slots=True, kw_only=True)
class MockPlugin:
    type: ClassVar[str] = "mock"
    components: Mapping[str, MockComponent]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What each process of a server may use, its children each as much again; None: what this process may."""

    memory_bytes: int | None = None
    """Of address space."""
    open_files: int | None = None


NO_LIMITS = ServerLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class McpPlugin:
    """An MCP server: a command over stdio, or a URL over streamable HTTP, which a command may serve."""

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
    """A server of the StepFlow protocol: a command, or a URL of one that runs already (`http`)."""

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
    """Executes in flight per process; None: what the server's generation bears."""
    start_timeout_ms: int = 30_000
    request_timeout_ms: int = 30_000
    """For requests other than executes."""
    line_bytes_max: int | None = None
    """Longest line the server reads; None: what its generation bears."""
    blob_threshold: int = 0
    """Over HTTP: members of outputs above this many bytes come as blobs; 0: never."""
    blob_host: str = "127.0.0.1"
    """Over HTTP: the address of this machine at which the server finds blobs."""
    limits: ServerLimits = NO_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcPlugin:
    """Workers that pull over gRPC: a command that starts them, or an address to which others connect, or both."""

    type: ClassVar[str] = "grpc"
    queue_name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherit_env: bool = True
    queue_timeout_ms: int = 30_000
    """How long a call waits where no worker is connected, and a worker may take to claim it where another could."""
    execution_timeout_ms: int | None = None
    listen: str = ""
    """HOST:PORT; empty: an own port for each process that is started, upstream's default without a command."""
    advertise: str = ""
    """HOST:PORT by which workers reach `listen`, where that is another one."""
    insecure: bool = False
    """Listen beyond this machine: the protocol has no TLS."""
    processes: int = 1
    concurrency: int | None = None
    """Calls in flight per worker."""
    start_timeout_ms: int = 30_000
    limits: ServerLimits = NO_LIMITS


PluginConfig = BuiltinPlugin | MockPlugin | McpPlugin | StepflowPlugin | GrpcPlugin


# --- the whole -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RetryConfig:
    transport_max_retries: int = 3
    backoff: Backoff = DEFAULT_BACKOFF

    def to_tree(self) -> dict[str, Any]:
        """Return it as it is written in a configuration."""
        return {"transportMaxRetries": self.transport_max_retries, "backoff": backoff_to_tree(self.backoff)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration, ready to use. Paths are absolute."""

    working_directory: Path
    plugins: Mapping[str, PluginConfig]
    routes: Mapping[str, tuple[Rule, ...]]
    retry: RetryConfig | None = None
    """None: nothing is said about it."""
    allowed_paths: tuple[Path, ...] = ()
    """Files and folders that `load_file` may read besides the working directory."""
    storage: Mapping[str, Any] = field(default_factory=dict)
    """Upstream's `storageConfig` as written; nothing here follows it."""
    digest: str = ""
    """SHA-256 of what the file means: comments, order of members and layout do not count."""
    source: Path | None = None
    label: str = "default configuration"
    """Names the configuration in messages."""
    warnings: tuple[str, ...] = ()

    def plugin(self, name: str, environ: Mapping[str, str]) -> PluginConfig:
        """Return a plugin with the variables in its texts replaced, ready to start.

        Raises:
            ConfigInvalid: a variable is not set and has no default.
        """
        from stepflow.config.variables import UnsetVariable, map_texts, substitute

        def replaced(place: tuple[str | int, ...], text: str) -> str:
            try:
                return substitute(text, environ)
            except UnsetVariable as unset:
                key = key_text(("plugins", name, *place))
                raise ConfigInvalid(
                    f"{self.label}: {key}: environment variable `{unset.name}` is not set; "
                    f"set it, or write `${{{unset.name}:-default}}`",
                    source=self.label,
                    field=key,
                ) from None

        return map_texts(self.plugins[name], replaced)


def default_config(working_directory: Path) -> Config:
    """Return what holds without any file: the builtin components at `/builtin`."""
    return Config(
        working_directory=working_directory.absolute(),
        plugins={"builtin": BuiltinPlugin()},
        routes={"/builtin": (Rule("builtin"),)},
        digest=digest_of({}),
    )


def load_config(path: Path | str) -> Config:
    """Read a configuration file.

    Raises:
        NotFound: CONFIG_NOT_FOUND.
        ConfigInvalid: with file, line and key; all problems of the file in one message.
    """
    from stepflow.flow.document import parse_tree
    from stepflow.flow.source import DocumentInvalid

    path = Path(path)
    label = str(path)
    text = _read(path, label)
    try:
        tree = parse_tree(
            text, source=label, format="json" if path.suffix in (".json", ".jsonl") else "yaml", complex_keys=True
        )
    except DocumentInvalid as error:
        raise ConfigInvalid(
            error.message, source=label, field=error.field, line=error.line or None, column=error.column or None
        ) from None
    return replace(config_from_tree(tree, source=label, base_dir=path.absolute().parent), source=path.absolute())


def config_from_tree(tree: Any, *, source: str, base_dir: Path) -> Config:
    """Read a configuration from a tree, or from a `stepflow.flow.document.Tree`, which knows the lines.

    `source` names it in messages; relative paths start at `base_dir`. Raises: ConfigInvalid.
    """
    return _reader()(tree, source=source, base_dir=base_dir.absolute())


def _reader() -> Callable[..., Config]:
    """Import the schema, without pydantic's search for plugins in all installed packages: 40 ms of every run."""
    switch = "PYDANTIC_DISABLE_PLUGINS"
    before = os.environ.get(switch)
    os.environ[switch] = "__all__"
    try:
        from stepflow.config.reader import read_config
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
    return read_config


def discover(flow_dir: Path, cwd: Path, *, test: bool = False) -> Path | None:
    """Find the configuration for a flow: in its folder, then in the current one.

    With `test`, a test configuration next to the flow comes first.

    Raises:
        ConfigInvalid: two candidates in one folder.
    """
    if test:
        found = _only_candidate(flow_dir, TEST_FILE_NAMES)
        if found is not None:
            return found
    return _only_candidate(flow_dir, FILE_NAMES) or _only_candidate(cwd, FILE_NAMES)


def _only_candidate(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = [folder / name for name in names if (folder / name).is_file()]
    if len(candidates) > 1:
        both = " and ".join(f"`{candidate.name}`" for candidate in candidates)
        raise ConfigInvalid(f"{folder}: {both} are both there; keep one, or name one with --config", source=str(folder))
    return candidates[0] if candidates else None


def _read(path: Path, label: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            raise ConfigInvalid(f"{label}: {size:,} bytes; the limit is {FILE_BYTES_MAX:,}", source=label)
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound("CONFIG_NOT_FOUND", f"configuration {label} does not exist", source=label) from None
    except OSError as error:
        raise ConfigInvalid(f"{label}: cannot be read: {error.strerror}", source=label) from None


def digest_of(tree: Any) -> str:
    """Return the digest of a configuration's tree."""
    return hashlib.sha256(encode(tree, order="sorted")).hexdigest()


def mock_key(tree: Any) -> bytes:
    """Return the text under which a mock behaviour is found: members sorted, 1 and 1.0 apart."""
    return encode(tree, order="sorted")


def did_you_mean(name: str, known: Any, *, cutoff: float = 0.6) -> str:
    """Return `; did you mean …?` for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean `{close[0]}`?" if close else ""


def key_text(place: tuple[str | int, ...]) -> str:
    """Write a place in a configuration as people do: `plugins.time.args[1]`, `routes["/a"][0]`."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text


_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
