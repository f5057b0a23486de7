"""The component host's side of a call, for tests of a single backend: it records requests and answers by script."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from component_host.backend import BackendContext
from stepflow.errors import Failure, Invalid, NotFound
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from component_host.backend import Backend, BlobAccess
    from stepflow.log_lines import LogLine

B = TypeVar("B", bound="Backend")

RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
FLOW_ID = "ab" * 32


class MemoryBlobs:
    """A blob store in a dictionary."""

    def __init__(self) -> None:
        self.content: dict[str, tuple[bytes, str]] = {}

    async def put(self, content: bytes, *, blob_type: str = "data") -> str:
        blob_id = hashlib.sha256(content).hexdigest()
        self.content[blob_id] = (content, blob_type)
        return blob_id

    async def get(self, blob_id: str) -> tuple[bytes, str]:
        if len(blob_id) != 64:
            raise Invalid("BLOB_ID_INVALID", f"{blob_id!r} is not a blob id")
        if blob_id not in self.content:
            raise NotFound("BLOB_NOT_FOUND", f"there is no blob {blob_id}")
        return self.content[blob_id]


class Call:
    """One call; `await call.outcome()` returns the output tree or the Failure. Implements `backend.HostCall`."""

    def __init__(
        self,
        component: str,
        input: Any = None,  # the member's name
        *,
        blobs: MemoryBlobs | None = None,
        runs: Callable[[host_pb2.StartRun], host_pb2.RunReport] | None = None,
        flows: dict[str, Any] | None = None,
        **request: Any,
    ) -> None:
        fields = {"run_id": RUN_ID, "root_run_id": RUN_ID, "flow_id": FLOW_ID, "step_id": "s1", "attempt": 1}
        fields |= {"key": f"{RUN_ID}/0/s1"}
        self.request = host_pb2.Call(component=component, **{**fields, **request})
        self.input = msgspec.json.encode(input)
        self.settled = False
        self.queued = False
        self.queue_notes: list[bool] = []
        self.blobs: BlobAccess = MemoryBlobs() if blobs is None else blobs
        self.backend_state: Any = None
        self.progressed: list[tuple[float, float, str]] = []
        self.logged: list[LogLine] = []
        self.reports: dict[str, host_pb2.RunReport] = {}
        self.started: list[host_pb2.StartRun] = []
        self._runs = runs
        self._flows = flows or {}
        self._outcome: asyncio.Future[bytes | Failure] = asyncio.get_running_loop().create_future()

    def succeed(self, output: bytes) -> None:
        if not self.settled:
            self.settled = True
            self._outcome.set_result(output)

    def fail(self, failure: Failure) -> None:
        if not self.settled:
            self.settled = True
            self._outcome.set_result(failure)

    def progress(self, done: float = 0.0, total: float = 0.0, message: str = "") -> None:
        self.progressed.append((done, total, message))

    def log(self, lines: Sequence[LogLine], dropped: int = 0) -> None:
        self.logged.extend(lines)

    def note_queued(self) -> None:
        self.queued = True
        self.queue_notes.append(True)

    def note_begun(self) -> None:
        if self.queued:
            self.queued = False
            self.queue_notes.append(False)

    async def start_run(self, request: host_pb2.StartRun) -> host_pb2.RunReport:
        assert self._runs is not None
        self.started.append(request)
        report = self._runs(request)
        self.reports[report.run_id] = report
        return report

    async def get_run(self, run_id: str, *, wait: bool) -> host_pb2.RunReport:
        if run_id not in self.reports:
            raise NotFound("RUN_NOT_FOUND", f"there is no run {run_id}")
        return self.reports[run_id]

    async def get_flow(self, flow_id: str) -> bytes:
        if flow_id not in self._flows:
            raise NotFound("FLOW_NOT_FOUND", f"there is no flow {flow_id}")
        return msgspec.json.encode(self._flows[flow_id])

    async def outcome(self, timeout_s: float = 30.0) -> Any:
        async with asyncio.timeout(timeout_s):
            result = await asyncio.shield(self._outcome)
        return result if isinstance(result, Failure) else msgspec.json.decode(result)


def report(run_id: str, *flow_results: Any) -> host_pb2.RunReport:
    """Build the report of a finished run from its FlowResults."""
    items = [
        host_pb2.ReportItem(
            status=pb.RUN_STATUS_COMPLETED if result["outcome"] == "success" else pb.RUN_STATUS_FAILED,
            flow_result=pb.Payload(json=msgspec.json.encode(result)),
        )
        for result in flow_results
    ]
    return host_pb2.RunReport(
        run_id=run_id,
        flow_id=FLOW_ID,
        flow_name="sub",
        status=pb.RUN_STATUS_COMPLETED,
        created_at_ms=1_700_000_000_000,
        completed_at_ms=1_700_000_001_500,
        items=items,
    )


def context(name: str = "kit", working_directory: str = "/", **environ: str) -> BackendContext:
    """Build the context of a backend; `environ` is added to the environment of the tests."""
    return BackendContext(name, str(working_directory), {**os.environ, **environ})


@asynccontextmanager
async def started(backend: B) -> AsyncIterator[B]:
    """Run a backend until the block ends."""
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


async def execute(backend: Backend, component: str, input: Any = None, **call: Any) -> Any:  # as in Call
    """Execute a component and return its output tree or its Failure; `call` are arguments of `Call`."""
    one = Call(component, input, **call)
    backend.execute(one)
    return await one.outcome()
