"""The interface between the conformance cases and a mesh: trees in, trees out.

The cases use only `CaseMesh`, so they run against every deployment. To add one, write a class with these methods and
add its name to `MESHES`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stepflow.cli.testing.compare import without_mesh_data
from support import ROOT

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping, Sequence
    from pathlib import Path

    from stepflow.embedded.mesh import Mesh
    from stepflow.flow import Flow
    from stepflow.store.sqlite.store import SqliteStore

T = TypeVar("T")

FLOWS = ROOT / "tests" / "data" / "flows" / "conformance"
CONFIG = FLOWS / "stepflow-config.yml"

MESHES = ("embedded", "services")

RUN_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0

FlowDocument = dict[str, Any] | str
"""A tree, the name of a file in `FLOWS`, or the id of a stored flow."""


@dataclass(frozen=True)
class RanStep:
    """A started step. `depth` is 0 for steps of the run itself; `result` is a FlowResult tree, None while it runs."""

    id: str
    item: int
    depth: int
    status: str
    attempt: int
    result: Any


@dataclass(frozen=True)
class Ran:
    """A completed run. `results` are FlowResult trees and `item_statuses` are status names, both indexed by item.

    Errors are shown without the step and the trace that the mesh adds to their data.
    """

    run_id: str
    status: str
    results: list[Any]
    item_statuses: list[str]
    steps: list[RanStep]

    def __post_init__(self) -> None:
        self.results[:] = map(without_mesh_data, self.results)
        self.steps[:] = [replace(step, result=without_mesh_data(step.result)) for step in self.steps]

    @property
    def value(self) -> Any:
        """The result of the only item, which must have succeeded."""
        (result,) = self.results
        assert result["outcome"] == "success", result
        return result["result"]

    @property
    def error(self) -> Any:
        """The error of the only item, which must have failed."""
        (result,) = self.results
        assert result["outcome"] == "failed", result
        return result["error"]

    def step(self, step_id: str, item: int = 0) -> RanStep:
        (found,) = [step for step in self.steps if (step.depth, step.item, step.id) == (0, item, step_id)]
        return found

    def started(self, item: int = 0) -> set[str]:
        """The ids of the steps of the run itself that were started for an item."""
        return {step.id for step in self.steps if (step.depth, step.item) == (0, item)}


class CaseMesh(Protocol):
    """The operations that the cases need. Every method may raise StepflowError."""

    def run(
        self,
        flow: FlowDocument,
        *inputs: Any,
        variables: Mapping[str, Any] | None = None,
        overrides: Any = None,
        window: int | None = None,
    ) -> Ran:
        """Submit a run with one item per input (one null item if there are none), and wait for its end."""

    def run_batch(self, flow: FlowDocument, inputs: Sequence[Any], **options: Any) -> Ran:
        """Submit a run and wait for its end, as `run` does; the list of inputs may be empty."""

    def diagnose(self, flow: FlowDocument) -> list[tuple[int, str, str | None]]:
        """Return code, level and path of every diagnostic."""

    def store(self, flow: FlowDocument) -> str:
        """Store a flow and return its id."""

    def stored(self, flow_id: str) -> Any:
        """Return the document of a stored flow, None if it does not exist."""


@contextmanager
def open_case_mesh(kind: str, config: Path = CONFIG, environ: Mapping[str, str] = os.environ) -> Iterator[CaseMesh]:
    """Run a mesh of a kind in `MESHES` until the block ends."""
    from support.service_cases import ServiceCases

    with _loop_in_thread() as loop:
        mesh: EmbeddedCases | ServiceCases = (EmbeddedCases if kind == "embedded" else ServiceCases)(loop)
        try:
            mesh.start(config, environ)
            yield mesh
        finally:
            mesh.close()


class EmbeddedCases:
    """The embedded mesh, in its own thread so that it keeps running between two cases."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._store: SqliteStore | None = None
        self._mesh: Mesh | None = None

    def start(self, config: Path, environ: Mapping[str, str]) -> None:
        self._await(self._start(config, environ))

    def close(self) -> None:
        self._await(self._close())

    def run(self, flow: FlowDocument, *inputs: Any, **options: Any) -> Ran:
        return self.run_batch(flow, inputs or (None,), **options)

    def run_batch(self, flow: FlowDocument, inputs: Sequence[Any], **options: Any) -> Ran:
        return self._await(self._run(flow, inputs, **options))

    def diagnose(self, flow: FlowDocument) -> list[tuple[int, str, str | None]]:
        from stepflow.flow import validate_flow

        return [(found.code, found.level, found.path) for found in validate_flow(read_flow(flow))]

    def store(self, flow: FlowDocument) -> str:
        return self._await(self._running.control.store_flow(read_flow(flow)))

    def stored(self, flow_id: str) -> Any:
        from stepflow.codec import decode
        from stepflow.errors import NotFound

        try:
            return decode(self._await(self._running.control.get_flow(flow_id)))
        except NotFound:
            return None

    @property
    def _running(self) -> Mesh:
        assert self._mesh is not None, "not started"
        return self._mesh

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(RUN_TIMEOUT_S)

    async def _start(self, config: Path, environ: Mapping[str, str]) -> None:
        from stepflow.config import load_config
        from stepflow.embedded.mesh import Mesh
        from stepflow.store.blobs import BlobStore
        from stepflow.store.sqlite.store import SqliteStore

        self._store = await SqliteStore.open(":memory:")
        self._mesh = Mesh(self._store, BlobStore.open("memory://"), load_config(config), environ)
        await self._mesh.start()
        for error in self._mesh.host.plugins.failures.values():
            raise error

    async def _close(self) -> None:
        if self._mesh is not None:
            await self._mesh.close()
        if self._store is not None:
            await self._store.close()

    async def _run(
        self,
        flow: FlowDocument,
        inputs: Sequence[Any],
        variables: Mapping[str, Any] | None = None,
        overrides: Any = None,
        window: int | None = None,
    ) -> Ran:
        from stepflow.cli.display.trees import outcome_tree
        from stepflow.codec import encode
        from stepflow.embedded.mesh import run_request

        mesh = self._running
        is_id = isinstance(flow, str) and not flow.endswith(".yaml")
        request = run_request(
            str(flow) if is_id else read_flow(flow),
            [encode(value) for value in inputs],
            config=mesh.config,
            variables=variables or {},
            overrides=overrides,
            concurrency_max=window,
        )
        run_id = await mesh.control.submit(request)
        view = await mesh.control.wait(run_id, timeout_s=RUN_TIMEOUT_S / 2)
        items = await mesh.control.items(run_id)
        shown = [(item.status, None if item.outcome is None else outcome_tree(item.outcome)) for item in items]
        assert view.terminal, f"the run has not ended in time: {shown}"
        steps = [
            RanStep(
                id=step.step_id,
                item=step.item,
                depth=step.depth,
                status=step.status,
                attempt=step.attempt,
                result=None if step.outcome is None else outcome_tree(step.outcome),
            )
            for step in await mesh.control.steps(run_id, with_results=True)
        ]
        return Ran(run_id, view.status, [result for _, result in shown], [status for status, _ in shown], steps)


def read_flow(flow: FlowDocument) -> Flow:
    """Parse a document or a file in `FLOWS`."""
    from stepflow.flow import flow_from_tree, parse_flow

    if isinstance(flow, str):
        return parse_flow((FLOWS / flow).read_bytes(), source=flow, format="yaml")
    return flow_from_tree(flow)


@contextmanager
def _loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    import uvloop

    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="case mesh", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(STOP_TIMEOUT_S)
        assert not thread.is_alive(), (
            "the mesh's event loop hangs"
        )  # a daemon thread, so it cannot keep pytest from exiting
        loop.close()
