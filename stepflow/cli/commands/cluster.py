"""`stepflow cluster` and `stepflow components`: the members of a mesh, drains, the components of its hosts."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.commands.components import list_configured
from stepflow.cli.completion import complete_plugin
from stepflow.cli.options import JsonOption, ServerOption
from stepflow.cli.strict import StrictTyper

if TYPE_CHECKING:
    from stepflow.client import Client, Cluster, Component, HostInfo, PluginInfo, StoreInfo

app = StrictTyper(
    name="cluster",
    help="Show the members of a mesh, and drain them.",
    epilog="\b\nExamples:\n  stepflow cluster status\n  stepflow cluster drain executor-1\n"
    "  stepflow cluster undrain executor-1",
    no_args_is_help=True,
    rich_markup_mode=None,
)
components_app = StrictTyper(
    name="components",
    help="List components, and restart their servers.",
    epilog="\b\nExamples:\n  stepflow components list\n  stepflow components list --plugin builtin --json\n"
    "  stepflow components restart hello",
    no_args_is_help=True,
    rich_markup_mode=None,
)


MemberArgument = Annotated[
    str, typer.Argument(metavar="ID", help="An executor or a host, or a prefix of its id.", show_default=False)
]


@app.command("status")
def show_status(*, server: ServerOption = None, json: JsonOption = False) -> None:
    """Show the executors and hosts of a mesh with their load.

    The exit code is 1 when no run can begin or make progress: without a leader, without an executor or host that
    accepts work, or while the store is too full for new runs.

    \b
    Examples:
      stepflow cluster status
      stepflow cluster status --server mesh:7840 --json | jq '.executors | length'
    """
    import dataclasses

    from stepflow.cli import remote
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_mesh

    cluster = remote.ask(choose_mesh(server), lambda client: client.cluster())
    if json:
        print_json(dataclasses.asdict(cluster))
    else:
        _print_cluster(cluster)

    for text in cluster.warnings:
        console.warn(text)
    for text in cluster.store.slowed if cluster.store is not None else ():
        console.warn(f"slowed down: {text}")
    for text in cluster.obstacles:
        console.warn(f"runs cannot make progress: {text}")
    if cluster.obstacles:
        raise typer.Exit(console.EXIT_FAILED)


@app.command("drain")
def drain(
    *,
    name: MemberArgument,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Drain an executor or a host: it accepts no new work.

    An executor hands over its runs, a host finishes its calls.

    Returns when the last run or call is gone; Ctrl-C stops waiting, and draining continues. The drained process keeps
    running until it is stopped; `stepflow cluster undrain` lets it accept work again.

    \b
    Examples:
      stepflow cluster drain executor-1
      stepflow cluster drain host-2 --server mesh:7840
    """
    from stepflow.cli import remote
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_mesh
    from stepflow.errors import DeadlineExceeded

    mesh = choose_mesh(server)

    async def drain_member(client: "Client") -> dict[str, str]:
        kind, identity = await _find_member(client, name, mesh)
        console.say(f"draining {identity}")
        while True:
            try:
                await client.drain(**{kind: identity})
            except DeadlineExceeded as error:
                console.say(f"still draining: {error.message}")
            else:
                console.say(f"drained {identity}")
                return {kind: identity}

    drained = remote.ask(mesh, drain_member)
    if json:
        print_json(drained)


@app.command("undrain")
def undrain(*, name: MemberArgument, server: ServerOption = None, json: JsonOption = False) -> None:
    """End a drain: the executor or host accepts new work again. Runs that wait for an executor go on.

    \b
    Examples:
      stepflow cluster undrain executor-1
      stepflow cluster undrain host-2 --server mesh:7840
    """
    from stepflow.cli import remote
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_mesh

    mesh = choose_mesh(server)

    async def undrain_member(client: "Client") -> dict[str, str]:
        kind, identity = await _find_member(client, name, mesh)
        await client.undrain(**{kind: identity})
        console.say(f"{identity} accepts work")
        return {kind: identity}

    undrained = remote.ask(mesh, undrain_member)
    if json:
        print_json(undrained)


async def _find_member(client: "Client", text: str, mesh: str) -> tuple[str, str]:
    """Return the kind (`executor_id` or `host_id`) and the id of the member whose id begins with the text.

    Raises: Invalid `ID_AMBIGUOUS`, NotFound `DRAIN_TARGET_NOT_FOUND`.
    """
    from stepflow.cli import remote
    from stepflow.errors import Invalid, NotFound

    cluster = await client.cluster()
    found = {e.executor_id: "executor_id" for e in cluster.executors if text and e.executor_id.startswith(text)}
    found |= {h.host_id: "host_id" for h in cluster.hosts if text and h.host_id.startswith(text)}
    if len(found) > 1:
        raise Invalid("ID_AMBIGUOUS", f"several ids begin with {text!r}: {', '.join(found)}; give a longer prefix")
    if not found:
        raise NotFound(
            "DRAIN_TARGET_NOT_FOUND",
            f"no executor or host has an id that begins with {text[:80]!r}; "
            f"`stepflow cluster status{remote.server_argument(mesh)}` shows them",
        )
    [(identity, kind)] = found.items()
    return kind, identity


@components_app.command("list")
def list_components(
    *,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="List the components of this config's plugins, on this machine."),
    ] = None,
    plugin: Annotated[
        str,
        typer.Option(
            "--plugin", metavar="NAME", help="Only components of this plugin.", autocompletion=complete_plugin
        ),
    ] = "",
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="HOST:PORT",
            envvar="STEPFLOW_SERVER",
            show_envvar=False,
            help="The mesh. Default: STEPFLOW_SERVER, else a `stepflow dev` of this folder, else the config here.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the components of a mesh or of a config.

    Those of a mesh are listed with the state of their servers, those of a config with their paths in flows.

    For a config, its component servers are started and stopped; the exit code is 1 when one fails to start. With
    --json, schemas are included.

    \b
    Examples:
      stepflow components list
      stepflow components list --config stepflow-config.yml
      stepflow components list --plugin builtin --json | jq '.components[].path'
    """
    from stepflow.cli import remote
    from stepflow.cli.tables import print_json, print_table
    from stepflow.cli.target import choose_target

    mesh = None
    if config is None:
        mesh = choose_target(server).server
    elif server not in (None, os.environ.get("STEPFLOW_SERVER")):
        raise console.Usage("OPTIONS_EXCLUSIVE", "--config and --server exclude each other; give one of them")
    if mesh is None:
        list_configured(config, "json" if json else "pretty", with_schemas=json, plugin=plugin)
        return

    async def work(client: "Client") -> tuple["list[Component]", "list[tuple[str, PluginInfo]]"]:
        hosts = (await client.cluster()).hosts
        servers = [(host.host_id, p) for host in hosts for p in host.plugins if plugin in ("", p.plugin)]
        return await client.components(plugin), servers

    found, servers = remote.ask(mesh, work)
    if json:
        components = [_component_tree(component) for component in found]
        print_json({"components": components, "plugins": [_plugin_tree(*pair) for pair in servers]})
        return

    if found:
        rows = [(c.plugin, c.path, str(len(c.host_ids)), _first_line(c.description)) for c in found]
        print_table(("PLUGIN", "PATH", "HOSTS", "DESCRIPTION"), rows)
    else:
        status = f"`stepflow cluster status{remote.server_argument(mesh)}`"
        console.say(f"no components: the mesh has no host, or its plugins list none; see {status}")
    if servers:
        console.show()
        lines = [(p.plugin, host, p.type, p.state, str(p.restarts), _first_line(p.last_error)) for host, p in servers]
        heads = ("PLUGIN", "HOST", "TYPE", "STATE", "RESTARTS", "LAST ERROR")
        print_table(heads, lines, whole=("STATE",), least=("RESTARTS", "TYPE"))


def _warn_of_waiting(member: str, what: str, count: int, bytes_max: int) -> None:
    if count:
        waiting = f"{count:,} {what}{'s' if count > 1 else ''} waiting for memory"
        console.warn(f"{member}: {waiting}; large values have {bytes_max / 2**20:,.0f} MiB (--value-memory)")


def _print_cluster(cluster: "Cluster") -> None:
    from stepflow.cli.tables import print_members, print_table

    members = [("leader", cluster.leader_id or "(none)"), ("pending runs", f"{cluster.runs_pending:,}")]
    print_members(members + ([] if cluster.store is None else _store_members(cluster.store)))
    if cluster.executors:
        console.show()
        executors = [
            (e.executor_id, e.address, f"{e.runs:,}/{e.runs_max:,}", "draining" if e.draining else "ready")
            for e in cluster.executors
        ]
        print_table(("EXECUTOR", "ADDRESS", "RUNS", "STATE"), executors, whole=("STATE",))
    if cluster.hosts:
        console.show()
        hosts = [
            (host.host_id, host.address, f"{host.capacity:,}", "draining" if host.draining else "ready", _plugins(host))
            for host in cluster.hosts
        ]
        heads = ("HOST", "ADDRESS", "CAPACITY", "STATE", "PLUGINS")
        print_table(heads, hosts, whole=("STATE",), least=("CAPACITY",))
    _warn_of_waiting(cluster.control_plane_id, "call", cluster.value_waiting, cluster.value_bytes_max)
    for executor in cluster.executors:
        _warn_of_waiting(executor.executor_id, "run", executor.value_waiting, executor.value_bytes_max)
    for host in cluster.hosts:
        _warn_of_waiting(host.host_id, "call", host.value_waiting, host.value_bytes_max)
    for host in cluster.hosts:
        for plugin in host.plugins:
            if plugin.state != "ready" and plugin.last_error:
                console.warn(f"{host.host_id}: plugin {plugin.plugin}: {plugin.last_error}")


def _store_members(store: "StoreInfo") -> list[tuple[str, str]]:
    from stepflow.cli.display.texts import duration

    def mib(count: float) -> str:
        return f"{count / 2**20:,.1f} MiB"

    share = store.bytes_in_use / max(1, store.quota_bytes)
    lag = f"{duration(store.packing_lag_ms)} behind" if store.packing_lag_ms else "up to date"
    packed = f"{store.packed_runs:,} runs in {store.segments:,} segments, {mib(store.packed_bytes)}"
    return [
        ("store", f"{mib(store.bytes_in_use)} in use, {share:.0%} of {mib(store.quota_bytes)}"),
        ("its file", mib(store.bytes_allocated)),
        ("comes in", f"{store.runs_in_per_s:,.1f} runs/s, {mib(store.bytes_in_per_s)}/s"),
        ("goes out", f"{store.runs_out_per_s:,.1f} runs/s, {mib(store.bytes_out_per_s)}/s"),
        ("packed", f"{packed}; {lag}"),
    ]


def _plugins(host: "HostInfo") -> str:
    return ", ".join(p.plugin if p.state == "ready" else f"{p.plugin} ({p.state})" for p in host.plugins)


def _plugin_tree(host_id: str, plugin: "PluginInfo") -> dict[str, Any]:
    tree = {"plugin": plugin.plugin, "host": host_id, "type": plugin.type, "state": plugin.state}
    return {**tree, "restarts": plugin.restarts} | ({"last_error": plugin.last_error} if plugin.last_error else {})


def _component_tree(component: "Component") -> dict[str, Any]:
    tree: dict[str, Any] = {"plugin": component.plugin, "component": component.component, "path": component.path}
    tree |= {"description": component.description} if component.description else {}
    for name in ("input_schema", "output_schema"):
        schema = getattr(component, name)
        tree |= {} if schema is None else {name: schema}
    return tree | {"hosts": component.host_ids}


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")
