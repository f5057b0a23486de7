"""`stepflow flows`: the flows stored in a mesh, by name, version and tag."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.completion import complete_flow, complete_flow_name
from stepflow.cli.options import JsonOption, OutputOption, ServerOption, with_flows
from stepflow.cli.strict import StrictTyper

if TYPE_CHECKING:
    from stepflow.cli.flow_storing import StoredVersion
    from stepflow.client import Client, FlowInfo

LEFT_OUT_SHOWN = 5
"""Names of files that are shown."""

app = StrictTyper(
    name="flows",
    help="Store, list, print and delete the flows of a mesh.",
    epilog="\b\nExamples:\n  stepflow flows store flow.yaml --tag live\n  stepflow flows list",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StoredFlowsOption = Annotated[
    list[str],
    typer.Argument(
        metavar="FLOW|DIR...",
        help="Files or folders, - for stdin, or stored flows: NAME[@TAG|@3] or an id.",
        autocompletion=complete_flow,
    ),
]
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@TAG]",
        help="The flow; `show` also accepts an id, and a version number as tag.",
        autocompletion=complete_flow_name,
    ),
]


@app.command("store")
@with_flows
def store_flows(
    *,
    flows: StoredFlowsOption,
    tag: Annotated[str, typer.Option("--tag", metavar="TAG", help="Tag to move to this version of each flow.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be stored.")] = False,
    server: ServerOption = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the ids, and warnings.")] = False,
) -> None:
    """Store flows. A named flow gets the next version of its name; storing the same flow again adds no version.

    Of a folder, all flow files below it are stored: YAML and JSON files with `steps` or `output`. Others are left out.
    All flows are checked before the first one is stored.

    A tag belongs to one version of a name: --tag moves it, with a warning that names the former version.

    \b
    Examples:
      stepflow flows store flow.yaml
      stepflow flows store flow.yaml --tag live --server mesh:7840
      stepflow flows store flows/ --dry-run
    """
    from pathlib import Path

    from stepflow.cli import remote
    from stepflow.cli.flow_files import find_flow_files
    from stepflow.cli.flow_storing import FlowStoring, read_checked
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_mesh

    # 1. Find and check all flows.
    mesh = choose_mesh(server, quiet=quiet)
    several = len(flows) > 1 or Path(flows[0]).is_dir()
    texts, left_out = find_flow_files(flows)
    if not texts:
        raise console.Usage("FLOW_MISSING", f"no flow in {', '.join(flows)}: a flow file has `steps` or `output`")
    found = read_checked(texts, mesh, tag)

    # 2. Store them.
    async def store(client: "Client") -> "list[StoredVersion]":
        done = []
        async for version in FlowStoring(client, tag=tag, dry_run=dry_run).each(found):
            done.append(version)
            _print_stored(version, several=several, dry_run=dry_run, json=json, quiet=quiet)
        return done

    done = remote.ask(mesh, store)
    if left_out and not quiet:
        shown = ", ".join(left_out[:LEFT_OUT_SHOWN]) + (", …" if len(left_out) > LEFT_OUT_SHOWN else "")
        console.say(f"left out {len(left_out):,} file(s) that are no flows: {shown}")
    if json and several:
        trees = [version.to_tree() for version in done]
        print_json({"flows": trees, "left_out": left_out, "stored": not dry_run})
    elif json:
        print_json({name: value for name, value in done[0].to_tree().items() if name != "flow"})


def _print_stored(version: "StoredVersion", *, several: bool, dry_run: bool, json: bool, quiet: bool) -> None:
    """Print a flow that was stored, or would be."""
    from stepflow.cli.flow_storing import UNCHANGED

    if not (json or dry_run):
        console.out(f"{version.flow_id}\n")
    if not quiet and not (json and not several and not dry_run):
        verb = ("would keep " if version.change == UNCHANGED else "would store ") if dry_run else ""
        console.say(verb + (f"{version.flow}: " if several else "") + str(version))
    for text in () if json and not several else version.warnings():
        console.warn(f"{version.flow}: {text}" if several else text)


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
