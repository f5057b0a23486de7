"""Builtin backends for tests, and calls to them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from component_host.backend import BackendContext
from component_host.builtin.backend import BuiltinBackend
from stepflow.config import BuiltinPlugin, OpenAISettings
from stepflow.errors import Failure
from stepflow.store.blobs import BlobStore
from support.host_side import Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

NOWHERE = Path("/nonexistent")


class Blobs:
    """The blobs visible to user code, in a real in-memory store."""

    def __init__(self) -> None:
        self.store = BlobStore.open("memory://")

    async def put(self, content: bytes, *, blob_type: str = "data") -> str:
        return await self.store.put(content, blob_type=blob_type)

    async def get(self, blob_id: str, /) -> tuple[bytes, str]:
        return await self.store.get(blob_id)


@asynccontextmanager
async def builtin(
    folder: Path = NOWHERE, *, environ: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[BuiltinBackend]:
    """Run a backend; `settings` are the `openai` settings and `allowed_paths`."""
    allowed = settings.pop("allowed_paths", ())
    context = BackendContext(name="builtin", working_directory=str(folder), environ=environ or {})
    backend = BuiltinBackend(context, BuiltinPlugin(openai=OpenAISettings(**settings)), allowed_paths=allowed)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


def begin(backend: BuiltinBackend, component: str, value: Any, blobs: Any = None) -> Any:
    """Start a call and return it as a `support.host_side.Call`."""
    store: Any = Blobs() if blobs is None else blobs
    call: Any = Call(component, value, blobs=store)
    backend.execute(call)
    return call


async def answer(backend: BuiltinBackend, component: str, value: Any, blobs: Any = None) -> Any:
    """Execute one call and return its outcome: a tree or a Failure."""
    return await begin(backend, component, value, blobs).outcome()


def ask(component: str, value: Any, folder: Path = NOWHERE, blobs: Any = None, **options: Any) -> Any:
    """Execute one call on a fresh backend and return its outcome."""

    async def main() -> Any:
        async with builtin(folder, **options) as backend:
            return await answer(backend, component, value, blobs)

    return asyncio.run(main())


def failed(outcome: Any) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome
