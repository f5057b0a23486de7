"""The public API over an in-process mesh: real gRPC on loopback, SQLite in memory, an event loop in its own thread."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from control_plane.api.server import ApiServer
    from stepflow.embedded.mesh import Mesh
    from stepflow.rpc.tls import Tls
    from stepflow.run.views import StepEvent
    from stepflow.store.blobs import BlobStore
    from stepflow.store.sqlite.store import SqliteStore

T = TypeVar("T")

CONFIG = ROOT / "tests" / "data" / "flows" / "conformance" / "stepflow-config.yml"

WORK_TIMEOUT_S = 60.0


class LiveFromExecutor:
    """Live events of the mesh's single executor."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def follow(self, run_id: str, listener: Callable[[StepEvent], None]) -> Callable[[], None]:
        self._mesh.executor.listen(run_id, listener)
        return lambda: self._mesh.executor.listen(run_id, None)


class ApiMesh:
    """A mesh with one or more API servers. `address` is that of the first."""

    def __init__(self, config: Path = CONFIG) -> None:
        self._config = config
        self.store: SqliteStore
        self.blobs: BlobStore
        self.mesh: Mesh
        self.servers: list[ApiServer] = []
        self.loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> str:
        return self.servers[0].address

    async def open(self, stack: AsyncExitStack) -> None:
        from stepflow.config import load_config
        from stepflow.embedded.mesh import open_mesh
        from stepflow.store.blobs import BlobStore
        from stepflow.store.sqlite.store import SqliteStore

        self.loop = asyncio.get_running_loop()
        self.store = await SqliteStore.open(":memory:")
        stack.push_async_callback(self.store.close)
        self.blobs = BlobStore.open("memory://")
        mesh = open_mesh(load_config(self._config), store=self.store, blobs=self.blobs, environ=os.environ)
        self.mesh = await stack.enter_async_context(mesh)
        stack.push_async_callback(self._stop_servers)

    async def serve(self, listen: str = "127.0.0.1:0", *, tls: Tls | None = None, insecure: bool = False) -> ApiServer:
        from control_plane.api.server import ApiServer

        server = ApiServer(
            self.mesh.control, self.store, self.blobs, tls=tls, insecure=insecure, live=LiveFromExecutor(self.mesh)
        )
        await server.start(listen)
        self.servers.append(server)
        return server

    async def _stop_servers(self) -> None:
        for server in self.servers:
            await server.stop()


@contextmanager
def api_mesh(config: Path = CONFIG) -> Iterator[tuple[ApiMesh, Callable[[Coroutine[Any, Any, T]], T]]]:
    """Run a mesh with one API server in a thread; yield the mesh and a function that runs a coroutine on its loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="api mesh")
    thread.start()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(WORK_TIMEOUT_S)

    mesh = ApiMesh(config)
    stack = AsyncExitStack()

    async def begin() -> None:
        await mesh.open(stack)
        await mesh.serve()

    try:
        run(begin())
        yield mesh, run
    finally:
        run(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
