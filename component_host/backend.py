"""The seam between the component host and the component servers.

Above: streams to executors, held results, deduplication, timeouts, credits, blobs of large outputs (`host`).
Below: one backend per configured plugin, with one protocol and a supervised server.
The implementations: `builtin`, `mock`, `stepflow_bridge` (stdio, HTTP, gRPC pull), `mcp_bridge` (stdio, HTTP).

Rules for a backend:
- `execute` returns at once and never raises. The call is settled (`succeed` or `fail`) exactly once, now or later.
  Settling a settled call is harmless: the first outcome counts.
- A call lost with the server, and possibly seen by the server, fails with UNREACHABLE; no other call does.
- `cancel` is a request: a backend without a way to stop the work only forgets the call.
- On the hot path (stdio) no task, timer or future is made per call. The host keeps the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from component_host.logs import PluginLog
from stepflow.config import NO_LIMITS, ServerLimits
from stepflow.telemetry import without_hidden

if TYPE_CHECKING:
    from stepflow.errors import Failure
    from stepflow.log_lines import LogLine
    from stepflow.mesh.v1 import host_pb2


@dataclass(frozen=True, slots=True)
class ComponentInfo:
    """A component as listed by a backend. Schemas are JSON Schema trees."""

    component: str
    """Id for allow and deny lists and for `execute` (`/eval`, `echo`)."""
    path: str
    """Path below the route's prefix, with a leading slash; may contain `{name}` and a final `{*name}`."""
    description: str | None = None
    input_schema: Any = None
    output_schema: Any = None


@dataclass(frozen=True, slots=True)
class BackendListing:
    """The components of a backend."""

    components: Sequence[ComponentInfo] = ()
    complete: bool = True
    """False if the server may have unlisted components (several StepFlow generations leave out path patterns). The
    host then passes an unlisted path to the server unchanged."""


class BlobAccess(Protocol):
    """Blobs whose ids are visible to user code."""

    async def put(self, content: bytes, *, blob_type: str = "data") -> str: ...
    async def get(self, blob_id: str, /) -> tuple[bytes, str]:
        """Return content and type. Raises: NotFound, Invalid (not an id)."""
        ...


class HostCall(Protocol):
    """One call, as seen by a backend. The attributes are fixed."""

    request: host_pb2.Call
    """Ids, attempt and route parameters."""
    input: bytes
    """Compact JSON, in full even if sent as a blob."""
    settled: bool
    queued: bool
    """The call waits for a server or a thread; no time of a timeout passes."""
    blobs: BlobAccess
    backend_state: Any
    """For the backend's own use (request id, process); None at first."""

    def succeed(self, output: bytes) -> None:
        """Settle with an output: JSON text from the server, unchecked. The host checks and compacts it."""
        ...

    def fail(self, failure: Failure) -> None: ...

    def progress(self, done: float = 0.0, total: float = 0.0, message: str = "") -> None:
        """Report progress, a sign of life; resets the idle timeout."""
        ...

    def log(self, lines: Sequence[LogLine], dropped: int = 0) -> None:
        """Take lines that the component has logged or printed, as the server wrote them. No sign of life.

        `dropped`: number of lines that the server left out before these.
        """
        ...

    def note_queued(self) -> None:
        """Stop the clock, which runs since `execute`: the call waits for a server or a thread. Idempotent."""
        ...

    def note_begun(self) -> None:
        """Start the clock of a queued call: its execution begins. Ignored for any other call."""
        ...

    async def start_run(self, request: host_pb2.StartRun) -> host_pb2.RunReport:
        """Run a flow as a sub-run of the step.

        `request.flow` and `request.inputs` are inline JSON or blob ids. An empty key is replaced by the number of
        keyless sub-runs started before in this attempt. Raises: StepflowError."""
        ...

    async def get_run(self, run_id: str, *, wait: bool) -> host_pb2.RunReport:
        """Return the report of a sub-run in the run tree of the call. Raises: NotFound."""
        ...

    async def get_flow(self, flow_id: str) -> bytes:
        """Return a stored flow's document (JSON). Raises: NotFound."""
        ...


class ServerHealth:
    """Health of a plugin's servers after the start, for display only. `changed` is called on each change."""

    ERROR_CHARS_MAX = 1_000

    def __init__(self, changed: Callable[[], None], servers: int = 1) -> None:
        self.restarts = 0
        """Number of successful restarts, over all servers."""
        self.last_error = ""
        """Reason of the last unwanted end or failed start; kept after the restart."""
        self._changed = changed
        self._servers = servers
        self._lost: set[object] = set()

    @property
    def serving(self) -> bool:
        """True if at least one server is up."""
        return len(self._lost) < self._servers

    def lost(self, server: object, error: str) -> None:
        """Record the unwanted end or failed start of a server."""
        self._lost.add(server)
        self.last_error = without_hidden(error)[: self.ERROR_CHARS_MAX]
        self._changed()

    def note_refused_restart(self, error: str) -> None:
        """Record that a new server did not start, and that this one serves on."""
        text = f"a restart failed, and the former server serves on: {without_hidden(error)}"
        self.last_error = text[: self.ERROR_CHARS_MAX]
        self._changed()

    def serves(self, server: object) -> None:
        """Record the first start or a restart of a server."""
        if server in self._lost:
            self._lost.discard(server)
            self.restarts += 1
            self._changed()


def with_stderr(what: str, tail: str) -> str:
    """Append the last lines of a server's stderr, if any, to an error text."""
    return f"{what}; the end of its stderr:\n{tail}" if tail else what


class Backend(Protocol):
    """One configured plugin."""

    name: str
    health: ServerHealth

    async def start(self) -> None:
        """Start the server, shake hands, list. Raises: StepflowError, with the last lines of stderr in the text."""
        ...

    def listing(self) -> BackendListing: ...

    def execute(self, call: HostCall) -> None: ...

    def cancel(self, call: HostCall) -> None: ...

    async def close(self) -> None:
        """Stop the server with the whole process group. Calls in flight fail with UNREACHABLE. Idempotent."""
        ...


ListingChanged = Callable[[], None]


@dataclass(frozen=True, slots=True)
class ShownConfig:
    """A plugin's configuration as written, with variables unexpanded: the form for errors, logs and listings."""

    command: str
    args: Sequence[str]
    url: str

    @classmethod
    def of(cls, config: object) -> ShownConfig:
        """Return the parts that a configuration has; others are empty."""
        return cls(getattr(config, "command", ""), getattr(config, "args", ()), getattr(config, "url", ""))

    def command_line(self) -> str:
        return " ".join((self.command, *self.args))


@dataclass(frozen=True, slots=True)
class BackendContext:
    """Constructor arguments of every backend, besides the plugin's own configuration."""

    name: str
    """Name of the plugin in the configuration."""
    working_directory: str
    environ: Mapping[str, str]
    """The host's own environment: the source of PATH, HOME, LANG, TMPDIR and of `$VAR` substitution."""
    listing_changed: ListingChanged = field(default=lambda: None)
    """Called by the backend after each change of `listing()` or `health`."""
    limits: ServerLimits = NO_LIMITS
    """Limits for each server process."""
    shown: ShownConfig | None = None
    """None: the configuration holds no variables."""
    log: PluginLog = field(default_factory=lambda: PluginLog(""))
    """Takes the lines of stderr."""

    def shown_config(self, config: object) -> ShownConfig:
        """Return the form for texts of the plugin's configuration, of which `config` is the resolved one."""
        return self.shown or ShownConfig.of(config)
