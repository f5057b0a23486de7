"""Helpers for tests of the pull bridge: backends that start workers, and workers that connect by themselves."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from component_host.stepflow_bridge.pull.backend import PullConfig, StepflowPullBackend
from component_host.stepflow_bridge.pull.endpoint import PullEndpoint
from support import ROOT, server_venv
from support.host_side import context, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

VERSIONS = ("0.12.0", "0.13.0")

SERVERS = ROOT / "tests" / "data" / "stepflow_servers"
BEHAVIOURS = ROOT / "tests" / "data" / "servers" / "behaviours.py"


def worker(version: str, *, environ: dict[str, str] | None = None, **config: Any) -> StepflowPullBackend:
    """Make a backend that starts `pull.py` on the stepflow-py of a version."""
    python = server_venv([f"stepflow-py=={version}"], f"stepflow-py-{version}") / "python"
    config = {"queue_name": "kit", "command": str(python), "args": [str(SERVERS / "pull.py")], **config}
    return StepflowPullBackend(context(**(environ or {})), PullConfig(**config))


def own(**config: Any) -> StepflowPullBackend:
    """Make a backend that starts a server with our SDK."""
    config = {
        "queue_name": "own",
        "command": "python",
        "args": [str(BEHAVIOURS)],
        "env": {"PYTHONPATH": str(ROOT)},
        **config,
    }
    return StepflowPullBackend(context("own"), PullConfig(**config))


@asynccontextmanager
async def open_endpoint(**config: Any) -> AsyncIterator[tuple[StepflowPullBackend, str]]:
    """Give a backend for workers of the queue `kit` that connect by themselves, and the address for them."""
    endpoint = PullEndpoint("127.0.0.1:0")
    backend = StepflowPullBackend(context(), PullConfig(queue_name="kit", **config), endpoint)
    async with started(backend):
        yield backend, endpoint.address


@asynccontextmanager
async def stranger(address: str, *command: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker outside of all plugins."""
    names = ("STEPFLOW_TASKS_URL", "STEPFLOW_BLOB_URL")
    environ = {**os.environ, **dict.fromkeys(names, address), "STEPFLOW_QUEUE_NAME": "kit", **env}
    process = await asyncio.create_subprocess_exec(*command, env=environ)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
