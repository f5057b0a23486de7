"""The seam between the component host and the servers it bridges to.

Above it: streams to executors, holds, deduplication, timeouts, credits, blobs of large outputs (`host.py`).
Below it: one backend per configured plugin, which knows one protocol and supervises its own server.
The implementations: `builtin`, `mock`, `stepflow` (stdio, HTTP, gRPC pull), `mcp` (stdio, HTTP).

Rules for a backend:
- `execute` returns at once and never raises; the call is settled (`succeed` or `fail`) exactly once, later or
  right away. Settling a settled call is harmless: the first one counts.
- A call that the server can have seen, and that is lost with it, fails with UNREACHABLE; nothing else does.
- `cancel` is a request: a backend that cannot stop the work only forgets the call.
- On the hot path (stdio) no task, timer or future is made per call. The host keeps the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stepflow.config import NO_LIMITS, ServerLimits

if TYPE_CHECKING:
    from stepflow.errors import Failure
    from stepflow.mesh.v1 import host_pb2


@dataclass(frozen=True, slots=True)
class ComponentInfo:
    """A component as its backend names it.

    `component` is the id that allow and deny lists and `execute` use (`/eval`, `echo`); `path` is what follows the
    route's prefix, starting with a slash; it may hold `{name}` and a final `{*name}`. Schemas are JSON Schema trees.
    """

    component: str
    path: str
    description: str | None = None
    input_schema: Any = None
    output_schema: Any = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a backend offers. `complete` is false where the server may have components that it does not list
    (several StepFlow generations leave out path patterns): then an unlisted path is sent to the server as it is."""

    components: Sequence[ComponentInfo] = ()
    complete: bool = True


class BlobAccess(Protocol):
    """Blobs whose ids user code sees."""

    async def put(self, content: bytes, *, blob_type: str = "data") -> str: ...
    async def get(self, blob_id: str, /) -> tuple[bytes, str]:
        """Return content and type. Raises: NotFound, Invalid (not an id)."""
        ...


class HostCall(Protocol):
    """One call, as a backend sees it. All attributes are fixed; `request` has the ids, attempt and route parameters."""

    request: host_pb2.Call
    input: bytes
    """Compact JSON, in full even where it travelled as a blob."""
    settled: bool
    blobs: BlobAccess
    backend_state: Any
    """Free for the backend (its request id, its process); None at first."""

    def succeed(self, output: bytes) -> None:
        """`output` is JSON text as the server sent it; the host checks and compacts it."""
        ...

    def fail(self, failure: Failure) -> None: ...

    def progress(self, done: float = 0.0, total: float = 0.0, message: str = "") -> None:
        """Report that the component is alive; resets its idle timeout."""
        ...

    async def start_run(self, request: host_pb2.StartRun) -> host_pb2.RunReport:
        """Run a flow as a sub-run of this call's step.

        `request.flow` and `request.inputs` are inline JSON or blob ids. An empty key is replaced by the count of the
        keyless calls made by this attempt so far. Raises: StepflowError."""
        ...

    async def get_run(self, run_id: str, *, wait: bool) -> host_pb2.RunReport:
        """Report on a sub-run of this call's run tree. Raises: NotFound."""
        ...

    async def get_flow(self, flow_id: str) -> bytes:
        """Return a stored flow's document (JSON). Raises: NotFound."""
        ...


class Health:
    """How the servers of a plugin do after its start, for people to read. `changed` is called when that changes."""

    ERROR_CHARS_MAX = 1_000

    def __init__(self, changed: Callable[[], None], servers: int = 1) -> None:
        self.restarts = 0
        """How often one of them served again."""
        self.last_error = ""
        """Why one of them ended, or did not start again; stays when it serves again."""
        self._changed = changed
        self._servers = servers
        self._lost: set[object] = set()

    @property
    def serving(self) -> bool:
        """Whether one of the servers at least is not lost."""
        return len(self._lost) < self._servers

    def lost(self, server: object, error: str) -> None:
        """One of the servers ended by itself, or did not start again."""
        self._lost.add(server)
        self.last_error = error[: self.ERROR_CHARS_MAX]
        self._changed()

    def serves(self, server: object) -> None:
        """One of the servers serves, for the first time or again."""
        if server in self._lost:
            self._lost.discard(server)
            self.restarts += 1
            self._changed()


def with_stderr(what: str, tail: str) -> str:
    """Add the end of a server's stderr, if there is any, to what happened to it."""
    return f"{what}; the end of its stderr:\n{tail}" if tail else what


class Backend(Protocol):
    """One configured plugin."""

    name: str
    health: Health

    async def start(self) -> None:
        """Make ready: start the server, shake hands, list. Raises StepflowError with the stderr tail in its text."""
        ...

    def listing(self) -> Listing: ...

    def execute(self, call: HostCall) -> None: ...

    def cancel(self, call: HostCall) -> None: ...

    async def close(self) -> None:
        """Stop the server, its whole process group. Calls in flight fail with UNREACHABLE. Safe to repeat."""
        ...


ListingChanged = Callable[[], None]


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What every backend is built with, beside its own configuration."""

    name: str
    """Name of the plugin in the configuration."""
    working_directory: str
    environ: Mapping[str, str]
    """The host's own environment: the source of PATH, HOME, LANG, TMPDIR and of `$VAR` substitution."""
    listing_changed: ListingChanged = field(default=lambda: None)
    """To be called when `listing()` or `health` has changed."""
    limits: ServerLimits = NO_LIMITS
    """For each process of a server that the backend starts."""
