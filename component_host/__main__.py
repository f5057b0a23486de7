"""`python -m component_host`: a component host of the mesh, as a process."""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from component_host.credits import CAPACITY_DEFAULT
from stepflow.errors import Invalid
from stepflow.rpc import process

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from stepflow.config import Config

DRAIN_GRACE_S = 30.0
"""How long calls in flight may take to end when the host is asked to."""


@dataclass(frozen=True, slots=True)
class HostConfig:
    """The options of a component host."""

    common: process.ServiceConfig
    config: Config
    host_id: str
    capacity: int
    replace_routes: bool
    drain_grace_s: float

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise Invalid("CAPACITY_INVALID", "--capacity must be at least 1")
        if not self.drain_grace_s >= 0:
            raise Invalid("GRACE_INVALID", "--drain-grace must not be negative")


def parser() -> argparse.ArgumentParser:
    made = process.parser("component_host", 7842, "Run component servers for the executors of a mesh.")
    made.add_argument("--config", metavar="FILE", help="stepflow-config.yml: plugins and routes; default: the builtins")
    made.add_argument("--host-id", default="host", metavar="NAME", help="what its id begins with; default: %(default)s")
    made.add_argument(
        "--capacity", type=int, default=CAPACITY_DEFAULT, metavar="N", help="calls at once; default: %(default)s"
    )
    made.add_argument("--replace-routes", action="store_true", help="put our routes in the place of a live host's")
    made.add_argument(
        "--drain-grace", type=float, default=DRAIN_GRACE_S, metavar="SECONDS", help="for calls in flight at SIGTERM"
    )
    return made


def read_options(options: argparse.Namespace) -> HostConfig:
    """Raises: StepflowError."""
    from stepflow.config import default_config, load_config

    if not options.host_id or "/" in options.host_id:
        raise Invalid("HOST_ID_INVALID", "--host-id must not be empty or hold a slash")
    return HostConfig(
        common=process.read_options(options),
        config=default_config(Path.cwd()) if options.config is None else load_config(Path(options.config)),
        host_id=f"{options.host_id}-{uuid4().hex[:12]}",  # fresh: nobody may take this life of it for another one
        capacity=options.capacity,
        replace_routes=options.replace_routes,
        drain_grace_s=options.drain_grace,
    )


@asynccontextmanager
async def serve(options: argparse.Namespace) -> AsyncIterator[None]:
    from component_host.backends import Doors, make_backend, make_backends
    from component_host.host import ComponentHost
    from component_host.registration import Registration
    from component_host.service import HostService
    from component_host.supervision.start_retries import Revival
    from stepflow.rpc.server import RpcServer
    from stepflow.store.blobs import BlobStore

    config = read_options(options)
    common = config.common
    registration: Registration | None = None

    def changed() -> None:
        if registration is not None:
            registration.changed()

    doors: Doors = {}
    host = ComponentHost(
        config.host_id, make_backends(config.config, os.environ, changed, doors=doors), BlobStore.open(common.blobs)
    )
    async with AsyncExitStack() as stack:
        health = await stack.enter_async_context(process.open_health(common))
        store = await process.open_store(common.etcd)
        stack.push_async_callback(store.close)
        server = RpcServer(tls=common.tls, insecure=common.insecure, link=True, health=health)
        service = HostService(host, capacity=config.capacity)
        service.add_to(server)
        stack.push_async_callback(server.stop)
        stack.push_async_callback(host.close)
        address = await server.start(common.listen)
        registration = Registration(
            store,
            host,
            config.config,
            address=common.advertised(address),
            capacity=config.capacity,
            replace_routes=config.replace_routes,
        )
        stack.push_async_callback(registration.close)
        service.on_drain = registration.drain
        await registration.start()
        await host.start(changed=changed)
        revival = Revival(host, lambda name: make_backend(name, config.config, os.environ, changed, doors), changed)
        stack.push_async_callback(revival.close)
        revival.begin()
        await health.begin(store, draining=lambda: service.draining)
        process.ready("component_host", host.id, address)
        yield
        await health.drain()
        await service.drain(config.drain_grace_s)


if __name__ == "__main__":
    sys.exit(process.run(parser(), serve))
