"""`python -m executor`: an executor of the mesh, as a process."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below
    from stepflow.start_interrupts import quieten

    quieten()

import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.errors import Invalid
from stepflow.rpc import process

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

HAND_OVER_GRACE_S = 10.0
"""How long the hand-over at shutdown may take; runs left then are taken over when the session expires."""

RUNS_MAX_DEFAULT = 10_000


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """The options of an executor."""

    common: process.ServiceConfig
    name: str
    runs_max: int
    value_bytes_max: int = 0

    def __post_init__(self) -> None:
        if self.runs_max < 1:
            raise Invalid("RUNS_MAX_INVALID", "--runs-max must be at least 1")
        if not self.name or "/" in self.name:
            raise Invalid("NAME_INVALID", "--name must not be empty or contain a slash")


def parser() -> argparse.ArgumentParser:
    made = process.parser("executor", 7841, "Drive the runs of a mesh.")
    made.add_argument(
        "--name", default="executor", metavar="NAME", help="prefix of the executor's id; default: %(default)s"
    )
    made.add_argument(
        "--runs-max", type=int, default=RUNS_MAX_DEFAULT, metavar="N", help="runs driven at once; default: %(default)s"
    )
    process.add_value_memory(made)
    return made


def read_options(options: argparse.Namespace) -> ExecutorConfig:
    """Read the command line. Raises: Invalid."""
    return ExecutorConfig(
        common=process.read_options(options),
        name=options.name,
        runs_max=options.runs_max,
        value_bytes_max=process.value_bytes_max(options),
    )


@asynccontextmanager
async def serve(options: argparse.Namespace) -> AsyncIterator[None]:
    """Run an executor for the length of the block; at its end all runs are handed over."""
    from executor.executor import Executor
    from executor.hosts.link import HostLinks
    from executor.hosts.pool import QUEUE_TIMEOUT_S
    from executor.service import ExecutorService
    from stepflow.rpc.server import RpcServer
    from stepflow.store.blobs import BlobStore
    from stepflow.vital import Vitals

    config = read_options(options)
    common = config.common
    async with AsyncExitStack() as stack:
        # 1. Connect to the store.
        health = await stack.enter_async_context(process.open_health(common))
        store = await process.open_store(common.etcd)
        stack.push_async_callback(store.close)

        # 2. Listen before registering: the session names the address.
        blobs = BlobStore.open(common.blobs)
        executor = Executor(
            store,
            blobs,
            rules={},
            builtins={},
            name=config.name,
            runs_max=config.runs_max,
            queue_timeout_s=QUEUE_TIMEOUT_S,
            value_bytes_max=config.value_bytes_max,
        )
        blobs.on_trouble = lambda _error: executor.rewrite_session()
        server = RpcServer(tls=common.tls, insecure=common.insecure, link=True, health=health)
        ExecutorService(executor).add_to(server)
        stack.push_async_callback(server.stop)
        address = await server.start(common.listen)
        executor.address = common.advertised(address)

        # 3. Know all hosts before the first run comes: they are asked for the calls of it that they hold.
        links = HostLinks(store, executor, tls=common.tls)
        stack.push_async_callback(links.close)
        await links.start()

        # 4. Register, then open the streams under the new id.
        stack.push_async_callback(executor.close)
        await executor.start()
        links.connect()
        await health.begin(
            store,
            draining=lambda: executor.draining,
            vitals=lambda: Vitals(executor.vitals().problem, [*executor.vitals().ended, *links.ended()]),
        )
        process.ready("executor", executor.id, address)
        yield

        # 5. Fail the probes, then hand over.
        await health.drain()
        await executor.hand_over(timeout_s=HAND_OVER_GRACE_S, stopping=True)


if __name__ == "__main__":
    sys.exit(process.run(parser(), serve))
