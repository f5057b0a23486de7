"""`stepflow runs watch`: a run of a mesh, followed to its end."""

from typing import TYPE_CHECKING, Annotated

import typer

from stepflow.cli.options import OutputOption, QuietOption, RunArgument, ServerOption

if TYPE_CHECKING:
    from stepflow.client import Client, ClientEvent, Run
    from stepflow.flow import Redactor


def watch_run(
    *,
    run_id: RunArgument,
    server: ServerOption = None,
    output: OutputOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON instead of the results.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Follow a run of a mesh to its end. Print its result as `stepflow submit` does.

    Ctrl-C stops watching; the run continues. The exit code is 1 when the run failed.

    \b
    Examples:
      stepflow runs watch 0198f3
      stepflow runs watch 0198f3 --server mesh:7840 --output result.json
      stepflow runs watch 0198f3 --json | jq -r .kind
    """
    from stepflow.cli import remote
    from stepflow.cli.display.follow import Following, follow
    from stepflow.cli.display.outcome import finish
    from stepflow.cli.display.streamed import ResultStream
    from stepflow.cli.display.trees import event_tree
    from stepflow.cli.display.view import choose_view
    from stepflow.cli.output import check_output
    from stepflow.cli.tables import print_json_line
    from stepflow.cli.target import choose_mesh

    check_output(output)
    mesh = choose_mesh(server, quiet=quiet)

    async def find(client: "Client") -> "tuple[Run, Redactor]":
        run = await client.get(await remote.find_run(client, run_id, mesh))
        return run, await remote.redactor(client, run)

    run, redactor = remote.ask(mesh, find)

    def print_event(event: "ClientEvent") -> None:
        print_json_line(event_tree(event))

    async def begin(client: "Client") -> tuple[str, int]:  # noqa: ARG001  # the run exists already
        return run.run_id, run.items_total

    view = choose_view(redactor.text, quiet=quiet or json)
    batch = bool(run.labels.get("batch", run.items_total != 1))
    stream = ResultStream(output, view, ordered=True) if batch and not json else None
    ended = follow(Following(mesh, view, on_event=print_event if json else None, stream=stream), begin)
    finish(ended, redactor, output, batch=batch, results=not json, stream=stream)
