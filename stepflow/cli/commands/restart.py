"""`stepflow components restart`: the servers of a plugin start again, on all hosts of a mesh."""

from typing import TYPE_CHECKING, Annotated

import typer

from stepflow.cli import console
from stepflow.cli.completion import complete_plugin
from stepflow.cli.options import JsonOption, ServerOption

if TYPE_CHECKING:
    from stepflow.client import Client, HostRestart


def restart(
    *,
    plugin: Annotated[
        str,
        typer.Argument(
            metavar="PLUGIN", help="The plugin, as the configuration names it.", autocompletion=complete_plugin
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="ID", help="Only on this host; a prefix of its id is enough.")
    ] = "",
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Start the servers of a plugin again, on one host after another.

    A host starts a new server first. Once it is ready, new calls wait at most 5 seconds for the calls in flight, then
    go to the new server; the former one ends when its calls have ended. A server that does not start changes nothing:
    the former one serves on. Servers at a URL are not restarted.

    The exit code is 1 unless every host has restarted the plugin.

    \b
    Examples:
      stepflow components restart hello
      stepflow components restart hello --server mesh:7840 --json | jq '.hosts[].outcome'
    """
    from stepflow.cli import remote
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_mesh

    async def work(client: "Client") -> "list[HostRestart]":
        return await client.restart_plugin(plugin, host_id=await _full_id(client, host) if host else "")

    hosts = remote.ask(choose_mesh(server), work)
    if json:
        tree = [{"host": each.host_id, "outcome": each.outcome, "detail": each.detail} for each in hosts]
        print_json({"plugin": plugin, "hosts": tree})
    else:
        for each in hosts:
            console.show(f"{each.host_id}: {each.text}")
    if any(each.outcome != "restarted" for each in hosts):
        raise typer.Exit(console.EXIT_FAILED)


async def _full_id(client: "Client", text: str) -> str:
    """Return the id of the host whose id begins with the text; the text if there is none. Raises: Invalid."""
    from stepflow.errors import Invalid

    found = [host.host_id for host in (await client.cluster()).hosts if host.host_id.startswith(text)]
    if len(found) > 1:
        raise Invalid("ID_AMBIGUOUS", f"several hosts begin with {text!r}: {', '.join(found)}; give a longer prefix")
    return found[0] if found else text
