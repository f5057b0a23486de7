"""`stepflow flows`: the flows stored in a mesh, by name, version and tag."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.completion import complete_flow_name
from stepflow.cli.options import FlowOption, JsonOption, OutputOption, ServerOption, with_flow
from stepflow.cli.strict import StrictTyper

if TYPE_CHECKING:
    from stepflow.client import Client, FlowInfo

app = StrictTyper(
    name="flows",
    help="Store, list, print and delete the flows of a mesh.",
    epilog="\b\nExamples:\n  stepflow flows store flow.yaml --tag live\n  stepflow flows list",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@TAG]",
        help="The flow; `show` also accepts an id, and a version number as tag.",
        autocompletion=complete_flow_name,
    ),
]


@app.command("store")
@with_flow
def store_flow(
    *,
    flow: FlowOption,
    tag: Annotated[str, typer.Option("--tag", metavar="TAG", help="Tag to move to this version of the flow.")] = "",
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Store a flow. A named flow gets the next version of its name; storing the same flow again adds no version.

    A tag belongs to one version of a name: --tag moves it, with a warning that names the former version.

    \b
    Examples:
      stepflow flows store flow.yaml
      stepflow flows store flow.yaml --tag live --server mesh:7840
    """
    from stepflow.cli import remote
    from stepflow.cli.commands.submit import check_flow
    from stepflow.cli.found_flow import find_flow
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_mesh
    from stepflow.client.requests import NOT_GIVEN
    from stepflow.flow import flow_bytes

    mesh = choose_mesh(server)
    parsed = find_flow(flow, mesh).flow
    check_flow(parsed)
    stored = remote.ask(mesh, lambda client: client.store_flow(flow_bytes(parsed), label=tag or NOT_GIVEN))
    if json:
        tree = {"flow_id": stored.flow_id, "name": parsed.name, "version": stored.version or None}
        moved = {"label": tag or None, "label_from": stored.label_from or None}
        print_json(tree | {"newest_version": stored.newest_version or None} | moved)
        return

    console.out(f"{stored.flow_id}\n")
    if stored.version:
        console.say(f"{parsed.name}, version {stored.version}" + (f", {tag}" if tag else ""))
    if stored.label_from:
        console.warn(f"the tag {tag} was on version {stored.label_from} and is now on version {stored.version}")
    if stored.newest_version > stored.version:
        console.warn(
            f"this flow was stored before: version {stored.newest_version} remains the newest; "
            f"name this one as {parsed.name}@{stored.version}"
        )


@app.command("list")
def list_flows(
    *,
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only names with this prefix.")] = "",
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """List the named flows with their newest versions and their tags.

    \b
    Examples:
      stepflow flows list
      stepflow flows list billing/ --json | jq '.flows[].name'
    """
    from stepflow.cli import remote
    from stepflow.cli.display.texts import clock
    from stepflow.cli.tables import print_json, print_table
    from stepflow.cli.target import choose_mesh

    async def work(client: "Client") -> "list[FlowInfo]":
        return [flow async for flow in client.list_flows(prefix)]

    mesh = choose_mesh(server)
    found = remote.ask(mesh, work)
    if json:
        print_json({"flows": [_tree(flow) for flow in found]})
    elif found:
        rows = [
            (flow.name, str(newest.version), _tags(flow), clock(newest.stored_at_ms), newest.flow_id[:12])
            for flow in found
            for newest in flow.versions[-1:]
        ]
        print_table(("NAME", "VERSION", "TAGS", "STORED", "FLOW_ID"), rows, whole=("STORED",), least=("FLOW_ID",))
    else:
        option = remote.server_argument(mesh)
        console.say(
            f"no flow name begins with {prefix!r}; `stepflow flows list{option}` shows all"
            if prefix
            else f"no named flows; store one with `stepflow flows store FLOW{option}`"
        )


@app.command("get", hidden=True)
@app.command("show")
def show_flow(
    *, flow: NameArgument, server: ServerOption = None, output: OutputOption = None, json: JsonOption = False
) -> None:
    """Print a stored flow as YAML, or with --json as JSON.

    \b
    Examples:
      stepflow flows show greet
      stepflow flows show greet@live --output flow.yaml
    """
    from stepflow.cli import remote
    from stepflow.cli.output import check_output, to_yaml, write_results
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_mesh

    check_output(output)
    _, document = remote.ask(choose_mesh(server), lambda client: client.get_flow(flow))
    if output is not None:
        write_results([document], output, batch=False)
    elif json:
        print_json(document)
    else:
        console.out(to_yaml(document))


@app.command("delete")
def delete_flow(*, flow: NameArgument, server: ServerOption = None, json: JsonOption = False) -> None:
    """Delete the name of a flow with all its versions, or one tag. Runs of the flow are not affected.

    \b
    Examples:
      stepflow flows delete greet
      stepflow flows delete greet@live
    """
    from stepflow.cli import remote
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_mesh
    from stepflow.client.requests import split_name

    name, label = split_name(flow)
    remote.ask(choose_mesh(server), lambda client: client.delete_flow(name, label=label))
    console.say(f"deleted {flow}")
    if json:
        print_json({"name": name, "label": label})


def _tags(flow: "FlowInfo") -> str:
    return ", ".join(f"{label} ({version.version})" for version in flow.versions for label in version.labels)


def _tree(flow: "FlowInfo") -> dict[str, Any]:
    return {
        "name": flow.name,
        "versions": [
            {
                "flow_id": version.flow_id,
                "version": version.version,
                "labels": version.labels,
                "stored_at_ms": version.stored_at_ms,
            }
            for version in flow.versions
        ],
    }
