"""`python -m control_plane`: a control plane of the mesh, as a process."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.errors import Invalid
from stepflow.rpc import process

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from control_plane.retention import RetentionPolicy
    from stepflow.config import RetryConfig

DEFAULT_PORT = 7840


@dataclass(frozen=True, slots=True)
class ControlPlaneConfig:
    """The options of a control plane. `lead`: stand for leader; one replica at least has to."""

    common: process.ServiceConfig
    lead: bool
    retention: RetentionPolicy
    retry: RetryConfig | None
    etcd_quota_bytes: int

    def __post_init__(self) -> None:
        if self.etcd_quota_bytes < 1:
            raise Invalid("QUOTA_INVALID", "--etcd-quota-bytes must be at least 1")


def parser() -> argparse.ArgumentParser:
    import argparse

    made = process.parser("control_plane", DEFAULT_PORT, "Serve the API of a mesh, and lead it.")
    made.add_argument(
        "--lead",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stand for leader, who places runs and takes them over; default: yes",
    )
    made.add_argument(
        "--config", metavar="FILE", help="stepflow-config.yml: its `retry` section is for runs that bring none"
    )
    made.add_argument(
        "--store-bytes-max", type=int, default=1024**3, metavar="BYTES", help="of ended runs in etcd; default: 1 GiB"
    )
    made.add_argument(
        "--keep-journals", type=float, default=24.0, metavar="HOURS", help="after a run's end; default: %(default)s"
    )
    made.add_argument(
        "--keep-runs", type=float, default=7 * 24.0, metavar="HOURS", help="after their end; default: %(default)s"
    )
    made.add_argument(
        "--keep-blobs",
        type=float,
        default=30 * 24.0,
        metavar="HOURS",
        help="shared ones, after their last put, unless something refers to them; default: %(default)s",
    )
    made.add_argument(
        "--etcd-quota-bytes",
        type=int,
        default=4 * 1024**3,
        metavar="BYTES",
        help="--quota-backend-bytes of etcd; no new runs at 70 %% of it; default: 4 GiB",
    )
    return made


def read_options(options: argparse.Namespace) -> ControlPlaneConfig:
    """Raises: StepflowError."""
    from control_plane.retention import RetentionPolicy
    from stepflow.config import load_config

    return ControlPlaneConfig(
        common=process.read_options(options),
        lead=options.lead,
        retention=RetentionPolicy(
            store_bytes_max=options.store_bytes_max,
            journals_s=options.keep_journals * 3600,
            runs_s=options.keep_runs * 3600,
            blobs_s=options.keep_blobs * 3600,
        ),
        retry=None if options.config is None else load_config(options.config).retry,
        etcd_quota_bytes=options.etcd_quota_bytes,
    )


@asynccontextmanager
async def serve(options: argparse.Namespace) -> AsyncIterator[None]:
    from control_plane.api.server import ApiServer
    from control_plane.control_plane import ControlPlane
    from control_plane.executors import Executors
    from control_plane.retention import Retention
    from stepflow.store.blobs import BlobStore

    config = read_options(options)
    common = config.common
    async with AsyncExitStack() as stack:
        health = await stack.enter_async_context(process.open_health(common))
        store = await process.open_store(common.etcd)
        stack.push_async_callback(store.close)
        blobs = BlobStore.open(common.blobs)
        control = ControlPlane(store, blobs, tls=common.tls, retry=config.retry)
        stack.push_async_callback(control.close)
        await control.start(lead=config.lead)
        retention = Retention(store, blobs, config.retention, control.leadership)
        stack.push_async_callback(retention.close)
        retention.start()
        executors = Executors(control, store, common.tls)
        stack.push_async_callback(executors.close)
        api = ApiServer(
            control,
            store,
            blobs,
            tls=common.tls,
            insecure=common.insecure,
            health=health,
            live=executors,
            drainer=executors,
            quota_bytes=config.etcd_quota_bytes,
        )
        stack.push_async_callback(api.stop)
        address = await api.start(common.listen)
        await health.begin(store)
        process.ready("control_plane", control.id, address)
        yield
        await health.drain()


if __name__ == "__main__":
    sys.exit(process.run(parser(), serve))
