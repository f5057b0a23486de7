"""`python -m control_plane`: a control plane of the mesh, as a process."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow import serving

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

DEFAULT_PORT = 7840


@dataclass(frozen=True, slots=True)
class ControlPlaneConfig:
    """The options of a control plane. `lead`: stand for leader; one replica at least has to."""

    common: serving.ServiceConfig
    lead: bool


def parser() -> argparse.ArgumentParser:
    import argparse

    made = serving.parser("control_plane", DEFAULT_PORT, "Serve the API of a mesh, and lead it.")
    made.add_argument(
        "--lead",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stand for leader, who places runs and takes them over; default: yes",
    )
    return made


def read_options(options: argparse.Namespace) -> ControlPlaneConfig:
    """Raises: Invalid."""
    return ControlPlaneConfig(common=serving.read_options(options), lead=options.lead)


@asynccontextmanager
async def serve(options: argparse.Namespace) -> AsyncIterator[None]:
    from control_plane.executors import Executors
    from control_plane.plane import ControlPlane
    from control_plane.service import ApiServer
    from stepflow.store.blobs import BlobStore

    config = read_options(options)
    common = config.common
    async with AsyncExitStack() as stack:
        store = await serving.open_store(common.etcd)
        stack.push_async_callback(store.close)
        blobs = BlobStore.open(common.blobs)
        control = ControlPlane(store, blobs, tls=common.tls)
        stack.push_async_callback(control.close)
        await control.start(lead=config.lead)
        executors = Executors(control, store, common.tls)
        stack.push_async_callback(executors.close)
        api = ApiServer(
            control, store, blobs, tls=common.tls, insecure=common.insecure, live=executors, drainer=executors
        )
        stack.push_async_callback(api.stop)
        address = await api.start(common.listen)
        serving.ready("control_plane", control.id, address)
        yield


if __name__ == "__main__":
    sys.exit(serving.run(parser(), serve))
