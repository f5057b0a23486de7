"""`python -m component_host`: a component host of the mesh, as a process."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below
    from stepflow.start_interrupts import quieten

    quieten()

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

    from component_host.backend import Backend
    from component_host.host import ComponentHost
    from component_host.registration import Registration
    from stepflow.config import Config
    from stepflow.store import Store

DRAIN_GRACE_S = 30.0
"""Time for calls in flight to end after SIGTERM."""


@dataclass(frozen=True, slots=True)
class HostConfig:
    """Command-line options of a component host."""

    common: process.ServiceConfig
    config: Config
    host_id: str
    capacity: int
    replace_routes: bool
    pool: str
    drain_grace_s: float
    value_bytes_max: int = 0

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise Invalid("CAPACITY_INVALID", "--capacity must be at least 1")
        if not self.drain_grace_s >= 0:
            raise Invalid("GRACE_INVALID", "--drain-grace must not be negative")


def parser() -> argparse.ArgumentParser:
    made = process.parser("component_host", 7842, "Run component servers for the executors of a mesh.")
    option = made.add_argument

    option("--config", metavar="FILE", help="stepflow-config.yml: plugins and routes; default: the builtins")
    option("--host-id", default="host", metavar="NAME", help="prefix of the host id; default: %(default)s")
    option(
        "--capacity",
        type=int,
        default=CAPACITY_DEFAULT,
        metavar="N",
        help="maximum of calls in flight; default: %(default)s",
    )
    option("--replace-routes", action="store_true", help="override the routes of a live host of the same pool")
    option(
        "--pool",
        default="",
        metavar="NAME",
        help="hosts of one configuration and its updates; name it if another configuration uses the same plugin names",
    )
    option(
        "--drain-grace",
        type=float,
        default=DRAIN_GRACE_S,
        metavar="SECONDS",
        help="time for calls in flight at SIGTERM; default: %(default)s",
    )

    process.add_value_memory(made)
    return made


def read_options(options: argparse.Namespace) -> HostConfig:
    """Raises: StepflowError."""
    from stepflow.config import default_config, load_config

    if not options.host_id or "/" in options.host_id:
        raise Invalid("HOST_ID_INVALID", "--host-id must not be empty and must not contain a slash")

    return HostConfig(
        common=process.read_options(options),
        config=default_config(Path.cwd()) if options.config is None else load_config(Path(options.config)),
        # Unique per process: executors must not confuse a restarted host with its predecessor.
        host_id=f"{options.host_id}-{uuid4().hex[:12]}",
        capacity=options.capacity,
        replace_routes=options.replace_routes,
        pool=options.pool,
        drain_grace_s=options.drain_grace,
        value_bytes_max=process.value_bytes_max(options),
    )


@asynccontextmanager
async def serve(options: argparse.Namespace) -> AsyncIterator[None]:
    from component_host.backends import PullEndpoints, make_backend, make_backends
    from component_host.host import ComponentHost
    from component_host.logs import HostLogs
    from component_host.plugin_changes import PluginChanges
    from component_host.service import HostService
    from component_host.supervision.start_retries import StartRetries
    from stepflow.rpc.server import RpcServer
    from stepflow.store.blobs import BlobStore

    config = read_options(options)
    common = config.common
    registration: Registration | None = None

    def changed() -> None:
        if registration is not None:
            registration.changed()

    endpoints: PullEndpoints = {}
    blobs = BlobStore.open(common.blobs)
    blobs.on_trouble = lambda _error: changed()
    logs = HostLogs(own_log=True)
    backends = make_backends(config.config, os.environ, changed, endpoints=endpoints, logs=logs)

    def make(name: str, present: Config) -> Backend:
        return make_backend(name, present, os.environ, changed, endpoints, logs)

    host = ComponentHost(config.host_id, backends, blobs, value_bytes_max=config.value_bytes_max, logs=logs)

    async with AsyncExitStack() as stack:
        # 1. Serve, so that the address is known. The exit order is the reverse: deregister, stop the host, the server.
        health = await stack.enter_async_context(process.open_health(common))
        store = await process.open_store(common.etcd)
        stack.push_async_callback(store.close)
        server = RpcServer(tls=common.tls, insecure=common.insecure, link=True, health=health)
        service = HostService(host, capacity=config.capacity)
        service.add_to(server)
        stack.push_async_callback(server.stop)
        stack.push_async_callback(host.close)
        address = await server.start(common.listen)

        # 2. Register. Plugins are listed as starting until they are ready.
        registration = _registration(config, store, host, common.advertised(address))
        stack.push_async_callback(registration.close)
        service.on_drain = registration.set_draining
        await registration.start()

        # 3. Start the plugins; retry failed starts in the background. From then on plugins can be changed.
        await host.start(changed=changed)
        retries = StartRetries(host.plugins, lambda name: make(name, changes.config), changed)
        stack.push_async_callback(retries.close)
        changes = service.changes = PluginChanges(host, config.config, make, registration, retries)
        stack.push_async_callback(changes.close)
        retries.begin()

        # 4. Report ready.
        await health.begin(store, draining=lambda: service.draining, vitals=registration.vitals)
        process.ready("component_host", host.id, address)
        yield

        # 5. Drain at SIGTERM.
        await health.drain()
        await service.drain(config.drain_grace_s, stopping=True)


def _registration(config: HostConfig, store: Store, host: ComponentHost, address: str) -> Registration:
    from component_host.registration import Registration

    return Registration(
        store,
        host,
        config.config,
        address=address,
        capacity=config.capacity,
        replace_routes=config.replace_routes,
        pool=config.pool,
    )


if __name__ == "__main__":
    sys.exit(process.run(parser(), serve))
