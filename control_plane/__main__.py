"""`python -m control_plane`: one replica of the control plane, as a process."""

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

    from control_plane.archive.policy import RetentionPolicy
    from stepflow.config import RetryConfig

DEFAULT_PORT = 7840


@dataclass(frozen=True, slots=True)
class ControlPlaneConfig:
    """The options of a control plane."""

    common: process.ServiceConfig
    lead: bool
    """Stand for leader; at least one replica of a mesh must."""
    retention: RetentionPolicy
    retry: RetryConfig | None
    etcd_quota_bytes: int
    value_bytes_max: int = 0
    """Memory for large values; 0 for the default."""

    def __post_init__(self) -> None:
        if self.etcd_quota_bytes < 1:
            raise Invalid("QUOTA_INVALID", "--etcd-quota-bytes must be at least 1")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    import argparse

    made = process.parser("control_plane", DEFAULT_PORT, "Serve the API of a mesh, and lead the mesh.")
    made.add_argument(
        "--lead",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stand for leader, which places runs and takes them over; default: yes",
    )
    made.add_argument(
        "--config",
        metavar="FILE",
        help="stepflow-config.yml; its `retry` section is the default of runs without a retry policy",
    )
    _add_retention(made)
    made.add_argument(
        "--formats-grace",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="time to update all control planes to this version before anything is written that earlier versions "
        "cannot read; default: %(default)s",
    )
    made.add_argument(
        "--etcd-quota-bytes",
        type=int,
        default=4 * 1024**3,
        metavar="BYTES",
        help="--quota-backend-bytes of etcd; above 40 %% of it admissions slow down, at 70 %% they end; default: 4 GiB",
    )
    process.add_value_memory(made)
    return made


def _add_retention(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--store-bytes-max",
        type=int,
        default=1024**3,
        metavar="BYTES",
        help="size of etcd in use above which runs are packed into the blob store as they end; default: 1 GiB",
    )
    made.add_argument(
        "--linger",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="keep a run in etcd after its end, less if etcd is half as full as that; default: %(default)s",
    )
    made.add_argument(
        "--packed-bytes-max",
        type=int,
        default=64 * 1024**3,
        metavar="BYTES",
        help="bound on packed runs, without their blobs; the runs that ended first go first; default: 64 GiB",
    )
    made.add_argument(
        "--keep-journals",
        type=float,
        default=24.0,
        metavar="HOURS",
        help="keep the steps of a run after its end; default: %(default)s",
    )
    made.add_argument(
        "--keep-runs",
        type=float,
        default=7 * 24.0,
        metavar="HOURS",
        help="keep a run and its results after its end; default: %(default)s",
    )
    made.add_argument(
        "--keep-blobs",
        type=float,
        default=30 * 24.0,
        metavar="HOURS",
        help="keep a shared blob without references after its last put; default: %(default)s",
    )


def read_options(options: argparse.Namespace) -> ControlPlaneConfig:
    """Convert the options. Raises: StepflowError."""
    from control_plane.archive.policy import RetentionPolicy
    from stepflow.config import load_config

    return ControlPlaneConfig(
        common=process.read_options(options),
        lead=options.lead,
        retention=RetentionPolicy(
            store_bytes_max=options.store_bytes_max,
            journals_s=options.keep_journals * 3600,
            runs_s=options.keep_runs * 3600,
            blobs_s=options.keep_blobs * 3600,
            linger_s=options.linger,
            packed_bytes_max=options.packed_bytes_max,
            formats_grace_s=options.formats_grace,
        ),
        retry=None if options.config is None else load_config(options.config).retry,
        etcd_quota_bytes=options.etcd_quota_bytes,
        value_bytes_max=process.value_bytes_max(options),
    )


@asynccontextmanager
async def serve(options: argparse.Namespace) -> AsyncIterator[None]:
    """Serve until the context ends. Raises: StepflowError."""
    from control_plane.api.server import ApiServer
    from control_plane.archive.keeper import ArchiveKeeper
    from control_plane.archive.step_index import StepIndexWriter
    from control_plane.component_logs import ComponentLogs
    from control_plane.control_plane import ControlPlane
    from control_plane.drains import Drains
    from control_plane.live_events import LiveEvents
    from control_plane.replay.process import ReplayProcess
    from control_plane.restarts import Restarts
    from control_plane.room import Room
    from control_plane.store_meter import StoreMeter
    from stepflow.store.blobs import BlobStore
    from stepflow.vital import Vitals

    config = read_options(options)
    common = config.common
    async with AsyncExitStack() as stack:
        # 1. Probes answer first; then the store and the blobs.
        health = await stack.enter_async_context(process.open_health(common))
        store = await process.open_store(common.etcd)
        stack.push_async_callback(store.close)
        blobs = BlobStore.open(common.blobs)

        # 2. The control plane, and the archive of ended runs.
        replay_process = ReplayProcess()
        stack.push_async_callback(replay_process.close)
        control = ControlPlane(store, blobs, tls=common.tls, retry=config.retry, replay_process=replay_process)
        stack.push_async_callback(control.close)
        await control.start(lead=config.lead)

        meter = StoreMeter(store)
        archive = ArchiveKeeper(
            store,
            blobs,
            control.formats,
            control.due_runs,
            config.retention,
            control.leadership,
            meter,
            StepIndexWriter(control.listing.replays),
        )
        stack.push_async_callback(archive.close)
        archive.start()

        room = Room(
            store,
            meter,
            control.activity,
            control.leadership,
            config.etcd_quota_bytes,
            packing=lambda: archive.counters,
        )
        stack.push_async_callback(room.close)
        room.start()

        # 3. The API.
        live = LiveEvents(control.cluster, common.tls)
        stack.push_async_callback(live.close)
        logs = ComponentLogs(store, common.tls)
        stack.push_async_callback(logs.close)

        api = ApiServer(
            control,
            store,
            blobs,
            tls=common.tls,
            insecure=common.insecure,
            health=health,
            live=live,
            logs=logs,
            drainer=Drains(control.cluster, store, common.tls),
            restarts=Restarts(store, common.tls),
            room=room,
            value_bytes_max=config.value_bytes_max,
        )
        stack.push_async_callback(api.stop)
        address = await api.start(common.listen)

        # 4. Ready; at the end, probes turn first, then everything closes in reverse order.
        await health.begin(store, vitals=lambda: Vitals(ended=[*control.ended(), *archive.ended(), *room.ended()]))
        process.ready("control_plane", control.id, address)
        yield
        await health.drain()


if __name__ == "__main__":
    sys.exit(process.run(parser(), serve))
