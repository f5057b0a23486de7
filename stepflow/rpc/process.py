"""The process of a service: options, store, signals, the ready line. Shared by the three services.

- The first SIGTERM, SIGINT or SIGHUP shuts the service down in order; a second one, later than
  `stop_signals.REPEAT_S`, ends the process at once.
- User errors are one line on stderr, with exit code 1 and no traceback.
- A ready service writes one line of JSON to stdout: `{"service": …, "id": …, "address": …}`.

Secrets come from the environment (`STEPFLOW_ETCD_PASSWORD`): options are visible to all users of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepflow import process_privacy, telemetry
from stepflow.errors import Invalid, StepflowError, Unavailable
from stepflow.standard_streams import StdoutUnwritable, prepare_streams
from stepflow.stop_signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from stepflow.rpc.health import ProcessHealth
    from stepflow.rpc.tls import Tls
    from stepflow.store.etcd.config import EtcdConfig
    from stepflow.store.etcd.store import EtcdStore

STORE_RETRY_S = 0.5

GC_THRESHOLD = 50_000
"""Allocations between collections: steps create many long-lived objects and few cycles."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Options common to all services."""

    etcd: EtcdConfig
    blobs: str
    """A directory, or the URL of a bucket (`stepflow.store.blobs`)."""
    listen: str
    """HOST:PORT; port 0: any free port."""
    advertise: str
    """HOST:PORT at which other services reach this one; empty: the listening address."""
    tls: Tls | None
    insecure: bool
    health_listen: str = ""
    """HOST:PORT of a second server with health only and without TLS, which kubelet's probes do not support."""

    def advertised(self, listening: str) -> str:
        """Return the address for other services. `listening`: the server's address with its actual port."""
        if self.advertise:
            return self.advertise
        host, _, port = listening.rpartition(":")
        return f"{socket.getfqdn()}:{port}" if host in ("0.0.0.0", "[::]") else listening  # noqa: S104  # a comparison


class StrictParser(argparse.ArgumentParser):
    """Refuses an option that is given but empty: `--tls-ca ""` would lose the check of clients."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        empty = _first_empty(words)
        if empty:
            self.error(f"{empty} is given but empty; leave it out, or set the variable that it comes from")
        return super().parse_known_args(words, namespace)


def _first_empty(words: Sequence[str]) -> str:
    """Return the name of the first option or argument without a text; empty if there is none."""
    for index, word in enumerate(words):
        name, given, value = word.partition("=")
        if name.startswith("--") and given and not value.strip():
            return name
        if not word.strip():
            return words[index - 1] if index else "an argument"
    return ""


def parser(service: str, port: int, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every service has."""
    made = StrictParser(prog=f"python -m {service}", description=description, allow_abbrev=False)
    made.add_argument("--listen", default=f"127.0.0.1:{port}", metavar="HOST:PORT", help="default: %(default)s")
    made.add_argument("--advertise", default="", metavar="HOST:PORT", help="where the others reach this process")
    made.add_argument("--etcd", required=True, metavar="HOST:PORT[,…]", help="endpoints of etcd, or https:// URLs")
    made.add_argument("--etcd-prefix", metavar="TEXT", help="what all keys begin with; default: stepflow/")
    made.add_argument("--etcd-ca", metavar="FILE")
    made.add_argument("--etcd-cert", metavar="FILE")
    made.add_argument("--etcd-key", metavar="FILE")
    made.add_argument("--etcd-user", default="", metavar="NAME", help="password: STEPFLOW_ETCD_PASSWORD")
    made.add_argument("--blobs", required=True, metavar="URL", help="a shared directory, or s3://, gs://, az://")

    made.add_argument("--tls-cert", metavar="FILE", help="certificate of this process, PEM")
    made.add_argument("--tls-key", metavar="FILE")
    made.add_argument("--tls-ca", metavar="FILE", help="authority of all services; only its clients are served")
    made.add_argument("--tls-name", metavar="NAME", help="what the others' certificates are for; default: the address")
    made.add_argument("--insecure", action="store_true", help="listen beyond this machine although there is no TLS")
    made.add_argument(
        "--health-listen", default="", metavar="HOST:PORT", help="answer health checks here too, without TLS"
    )

    made.add_argument("--log-level", default="info", choices=sorted(telemetry.LEVELS))
    made.add_argument("--log-format", default="text", choices=telemetry.FORMATS)
    return made


def add_value_memory(parser: argparse.ArgumentParser) -> None:
    """Add the option for services that hold values."""
    parser.add_argument(
        "--value-memory",
        type=int,
        default=0,
        metavar="MIB",
        help="memory for large values; what does not fit waits in order; "
        "default: a quarter of the memory limit of the cgroup or the machine",
    )


def value_bytes_max(options: argparse.Namespace) -> int:
    """Return the memory for large values in bytes, 0 for the default. Raises: Invalid."""
    if options.value_memory < 0:
        raise Invalid("VALUE_MEMORY_INVALID", "--value-memory must be at least 1, or 0 for the default")
    size: int = options.value_memory * 2**20
    return size


def read_options(options: argparse.Namespace) -> ServiceConfig:
    """Check the common options. Raises: Invalid."""
    from stepflow.rpc.tls import Tls
    from stepflow.store.etcd.config import DEFAULT_PREFIX, EtcdConfig

    etcd = EtcdConfig.parse(
        options.etcd,
        prefix=DEFAULT_PREFIX if options.etcd_prefix is None else options.etcd_prefix,
        ca_file=options.etcd_ca,
        cert_file=options.etcd_cert,
        key_file=options.etcd_key,
        user=options.etcd_user,
        password=os.environ.get("STEPFLOW_ETCD_PASSWORD", "") if options.etcd_user else "",
    )
    files = [None if name is None else Path(name) for name in (options.tls_cert, options.tls_key, options.tls_ca)]
    if files[0] is None and files[2] is not None:
        raise Invalid("TLS_INVALID", "--tls-ca needs --tls-cert and --tls-key: a service shows who it is")
    return ServiceConfig(
        etcd=etcd,
        blobs=options.blobs,
        listen=options.listen,
        advertise=options.advertise,
        tls=None if files[0] is None else Tls(files[0], files[1], files[2], options.tls_name),
        insecure=options.insecure,
        health_listen=options.health_listen,
    )


@asynccontextmanager
async def open_health(config: ServiceConfig) -> AsyncIterator[ProcessHealth]:
    """Answer probes until the block ends, even before the store is open: a process waiting for its store is alive."""
    from stepflow.rpc.health import ProcessHealth
    from stepflow.rpc.server import RpcServer

    health = ProcessHealth()
    probes = RpcServer(insecure=True, health=health)
    try:
        if config.health_listen:
            await probes.start(config.health_listen)
        yield health
    finally:
        await health.close()
        await probes.stop()


async def open_store(config: EtcdConfig) -> EtcdStore:
    """Open the store, waiting until it is available. Raises: StepflowError, if waiting cannot help."""
    from stepflow.store.etcd.store import EtcdStore

    log = telemetry.get_logger(__name__)
    while True:
        try:
            return await EtcdStore.open(config)
        except Unavailable as error:
            log.warning("waiting for etcd", endpoints=",".join(config.endpoints), reason=error.reason)
            await asyncio.sleep(STORE_RETRY_S)


def ready(service: str, identity: str, address: str) -> None:
    """Write the ready line, and tune the garbage collector for a long life."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    try:
        print(json.dumps({"service": service, "id": identity, "address": address}), flush=True)
    except StdoutUnwritable as error:  # nothing else needs stdout
        telemetry.get_logger(__name__).warning("the ready line cannot be written to stdout", error=error.strerror)


def run(
    arguments: argparse.ArgumentParser,
    serve: Callable[[argparse.Namespace], AbstractAsyncContextManager[None]],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the options and serve until a signal comes; return the exit code.

    `serve` starts the service on entry, calls `ready`, and shuts it down in order on exit. A signal during the start
    cancels it.
    """
    import uvloop

    prepare_streams()
    options = arguments.parse_args(argv)
    telemetry.configure(level=options.log_level, format=options.log_format)
    telemetry.hide(value for name, value in os.environ.items() if telemetry.is_secret_name(name))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            process_privacy.apply_switch()
            runner.run(_serve(serve(options)))
        except StepflowError as error:
            print(f"{arguments.prog}: {error.message} ({error.reason})", file=sys.stderr)
            return 1
    return 0


async def _serve(service: AbstractAsyncContextManager[None]) -> None:
    stop = asyncio.Event()
    starting = asyncio.ensure_future(service.__aenter__())

    def end(number: int, request: int) -> None:
        if request > 1:
            os._exit(128 + number)  # a hanging shutdown must not keep the process alive
        stop.set()
        starting.cancel()

    with StopSignals(asyncio.get_running_loop(), end):
        try:
            await starting
        except asyncio.CancelledError:
            if stop.is_set():
                return
            raise

        try:
            await stop.wait()
        finally:
            await service.__aexit__(None, None, None)


__all__ = ["ServiceConfig", "open_health", "open_store", "parser", "read_options", "ready", "run"]
