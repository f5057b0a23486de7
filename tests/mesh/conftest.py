"""Fixtures of this level: real component servers, each in its own venv, and etcd."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, server_venv
from support.conformance import MESHES, open_case_mesh
from support.etcd import running_etcd
from support.host_side import context

from component_host.stepflow_bridge.stdio.backend import StdioServerConfig, StepflowStdioBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from support.conformance import CaseMesh
    from support.etcd import EtcdServer

SERVERS = ROOT / "tests" / "data" / "stepflow_servers"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Give one etcd to the tests of a module, which take a key prefix each."""
    with running_etcd(tmp_path_factory.mktemp("etcd"), "--unsafe-no-fsync") as server:
        yield server


@pytest.fixture(scope="session")
def kit() -> Callable[..., AbstractAsyncContextManager[StepflowStdioBackend]]:
    """Give a started backend for `kit.py` on the stepflow-py of a version: `async with kit("0.7.0") as backend`."""

    @asynccontextmanager
    async def started(version: str, *args: str, **config: Any) -> AsyncIterator[StepflowStdioBackend]:
        python = server_venv([f"stepflow-py=={version}"], f"stepflow-py-{version}") / "python"
        config = {"command": str(python), "args": [str(SERVERS / "kit.py"), *args], **config}
        backend = StepflowStdioBackend(context(), StdioServerConfig(**config))
        await backend.start()
        try:
            yield backend
        finally:
            await backend.close()

    return started


@pytest.fixture(scope="session")
def rude() -> Callable[..., StepflowStdioBackend]:
    """Give a backend, not yet started, for a way in which `rude.py` behaves."""

    def make(*args: str, **config: Any) -> StepflowStdioBackend:
        config = {"command": "python3", "args": [str(SERVERS / "rude.py"), *args], **config}
        return StepflowStdioBackend(context("rude"), StdioServerConfig(**config))

    return make


@pytest.fixture(scope="session")
def own() -> Callable[..., StepflowStdioBackend]:
    """Give a backend, not yet started, for `own.py`, a server with our SDK."""

    def make(**config: Any) -> StepflowStdioBackend:
        config = {"command": "python", "args": [str(SERVERS / "own.py")], "env": {"PYTHONPATH": str(ROOT)}, **config}
        return StepflowStdioBackend(context("own"), StdioServerConfig(**config))

    return make


@pytest.fixture(scope="session", params=MESHES)
def mesh(request: pytest.FixtureRequest) -> Iterator[CaseMesh]:
    """Give a running mesh for the conformance cases, one of each kind."""
    with open_case_mesh(request.param) as mesh:
        yield mesh
