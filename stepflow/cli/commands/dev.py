"""`stepflow dev`: the whole mesh on this machine, until Ctrl-C."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.options import DEV_FOLDER, ConfigOption, EnvFileOption

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from stepflow.config import Config
    from stepflow.dev.mesh import DevMesh
    from stepflow.dev.reload import Reloader
    from stepflow.dev.services import DevSettings
    from stepflow.log_lines import StepLog


def dev(
    *,
    config: ConfigOption = None,
    port: Annotated[
        int,
        typer.Option("--port", min=1, max=65535, metavar="PORT", help="Port of the control plane."),
    ] = 7840,
    executors: Annotated[int, typer.Option("--executors", min=1, max=32, metavar="N", help="Number of executors.")] = 1,
    hosts: Annotated[
        int,
        typer.Option(
            "--hosts", min=1, max=32, metavar="N", help="Number of component hosts, each with all component servers."
        ),
    ] = 1,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of etcd, blobs and logs.")] = DEV_FOLDER,
    reload: Annotated[
        bool,
        typer.Option("--reload", help="Apply changes of the config and of component files while the mesh runs."),
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Delete the data of an earlier mesh in the folder first.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="When ready, print addresses and process ids on stdout as JSON.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")] = False,
    env_file: EnvFileOption = None,  # noqa: ARG001  # handled by its callback; the services inherit the environment
) -> None:
    """Start the whole mesh on this machine. It has etcd, a control plane, executors and component hosts.

    The mesh runs until Ctrl-C, which stops all processes in order; a second Ctrl-C kills them. Runs that have not ended
    continue at the next start. A service that dies is restarted. etcd is the program that ETCD_BIN names, else it is
    fetched once from Debian's archive.

    With --reload, a changed component file restarts its plugin: a new server starts first, and calls in flight end in
    the former one. If the new one does not start, the former one serves on. Changed plugins and routes of the config
    are applied; a config that is invalid changes nothing. Runs go on.

    \b
    Examples:
      stepflow dev
      stepflow dev --reload
      stepflow dev --config stepflow-config.yml --executors 2 --hosts 2
      stepflow dev --port 7850 --data /tmp/mesh --reset
    """
    import asyncio

    from stepflow.cli.input.documents import read_config
    from stepflow.dev.services import DevSettings

    loaded = read_config(config)
    for text in loaded.warnings:
        console.warn(text)
    settings = DevSettings(
        folder=data.absolute(),
        config=loaded.source,
        port=port,
        executors=executors,
        hosts=hosts,
    )
    if reload and loaded.source is None:
        console.warn("--reload: there is no configuration file to watch; `stepflow init` writes one")
    asyncio.run(_run(settings, loaded if reload else None, reset=reset, json=json, quiet=quiet))


async def _run(settings: "DevSettings", reloaded: "Config | None", *, reset: bool, json: bool, quiet: bool) -> None:
    """Run a mesh from its start to the first signal; a second one kills it."""
    import asyncio
    import os

    from stepflow.dev.mesh import DevMesh
    from stepflow.stop_signals import StopSignals

    mesh = DevMesh(settings, console.say)
    stop = asyncio.Event()

    def end(number: int, request: int) -> None:
        if request > 1:
            mesh.kill()
            os._exit(128 + number)  # the guard of each service ends what is left
        stop.set()

    with StopSignals(asyncio.get_running_loop(), end):
        await _run_until(mesh, reloaded, stop, reset=reset, json=json, quiet=quiet)


async def _run_until(
    mesh: "DevMesh", reloaded: "Config | None", stop: "asyncio.Event", *, reset: bool, json: bool, quiet: bool
) -> None:
    """Start the mesh, wait for `stop`, and stop the mesh; the services that have started also stop after an error."""
    import asyncio

    if not quiet:
        console.say(console.styled("starting the mesh …", "dim"))
    # Before the servers start: a change from now on is noticed.
    reloader = None if reloaded is None or reloaded.source is None else await _reloader(mesh, reloaded, quiet=quiet)
    starting = asyncio.create_task(mesh.start(reset=reset))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _print_ready(mesh, json=json, quiet=quiet)
            await _warn_of_plugins(mesh)
            async with _logs_shown(mesh, quiet=quiet):
                if reloader is not None:
                    await _reload_until(reloader, stopped, quiet=quiet)
                await stopped
        if not quiet:
            console.say(console.styled("stopping …", "dim"))
    finally:
        for task in (starting, stopped):
            task.cancel()
        await asyncio.gather(starting, stopped, return_exceptions=True)
        await mesh.stop()

    if not quiet:
        console.say("the mesh has stopped")


@contextlib.asynccontextmanager
async def _logs_shown(mesh: "DevMesh", *, quiet: bool) -> "AsyncIterator[None]":
    """Print what component servers log and print, for the duration of the block."""
    import asyncio

    from stepflow.cli.display.texts import log_texts
    from stepflow.dev.host_logs import follow_hosts

    def show(log: "StepLog") -> None:
        for text in log_texts(log, batch=False, redact=str):
            console.say(console.styled(text, "dim"))

    following = None if quiet else asyncio.create_task(follow_hosts(mesh.addresses, show))
    try:
        yield
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _reloader(mesh: "DevMesh", config: "Config", *, quiet: bool) -> "Reloader":
    """Return a reloader that has looked at the files."""
    import asyncio

    from stepflow.dev.reload import Reloader

    say = (lambda _text: None) if quiet else console.say
    return await asyncio.to_thread(Reloader, mesh, config, say, console.warn)


async def _reload_until(reloader: "Reloader", stopped: "asyncio.Task[Any]", *, quiet: bool) -> None:
    """Apply changes of the configuration and of component files until the mesh is to stop."""
    import asyncio

    from stepflow.telemetry import get_logger
    from stepflow.vital import keep_running

    for line in [] if quiet else reloader.describe():
        console.say(console.styled(f"  {line}", "dim"))

    reloading = asyncio.create_task(keep_running(get_logger(__name__), "the watch of files", reloader.run))
    await asyncio.wait((reloading, stopped), return_when=asyncio.FIRST_COMPLETED)
    reloading.cancel()
    await asyncio.gather(reloading, return_exceptions=True)


def _print_ready(mesh: "DevMesh", *, json: bool, quiet: bool) -> None:
    import os

    from stepflow.cli.target import mesh_option

    if json:
        from stepflow.codec import encode

        pids = {service.name: service.pid for service in mesh.services}
        tree = {
            "server": mesh.server,
            "pid": os.getpid(),
            "etcd_version": mesh.etcd_version,
            "data": str(mesh.settings.folder),
            "services": {name: {"address": address, "pid": pids[name]} for name, address in mesh.addresses().items()},
        }
        console.out(encode(tree) + b"\n")
    if quiet:
        return

    parts = [f"{name} {address}" for name, address in mesh.addresses().items() if name != "control_plane"]
    console.say(f"{console.styled('the mesh is ready', 'green', 'bold')} at {mesh.server}")
    console.say(console.styled(f"  etcd {mesh.etcd_version}; {', '.join(parts)}", "dim"))
    console.say(console.styled(f"  data and logs: {mesh.settings.folder}", "dim"))
    console.say(f"try: stepflow submit FLOW{mesh_option(mesh.server)}   (Ctrl-C stops the mesh)")


async def _warn_of_plugins(mesh: "DevMesh") -> None:
    """Warn of plugins that failed to start. Their hosts keep running and retry the start."""
    from stepflow.client import Client
    from stepflow.errors import StepflowError

    try:
        async with Client(mesh.server, patience_s=1.0) as client:
            hosts = (await client.cluster()).hosts
    except StepflowError:  # the control plane was killed just now: its restart is printed
        return
    failed = {plugin.plugin: plugin.last_error for host in hosts for plugin in host.plugins if plugin.state == "failed"}
    for name, text in failed.items():
        console.warn(f"plugin {name} failed to start: {text}")
