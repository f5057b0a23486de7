"""`stepflow runs`: list, show, follow, signal, cancel and delete runs, of this machine or of a mesh.

`list`, `show`, `signal` and `delete` are for runs of either (see `stepflow.cli.target`); `watch` and `cancel` are for
runs of a mesh. The former words for `show` are in `former`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepflow.cli import console
from stepflow.cli.commands.logs import show_logs
from stepflow.cli.commands.prune import ENDED, prune_runs
from stepflow.cli.commands.watch import watch_run
from stepflow.cli.completion import complete_flow_without_tag
from stepflow.cli.options import (
    VALUE_HELP,
    JsonOption,
    OutputOption,
    RunArgument,
    RunArguments,
    ServerOption,
    TargetServerOption,
    TargetStoreOption,
    ValueOptions,
)
from stepflow.cli.strict import StrictTyper

if TYPE_CHECKING:
    from stepflow.cli.target import CliTarget
    from stepflow.cli.wanted_runs import WantedRuns
    from stepflow.client import Client, Run

app = StrictTyper(
    name="runs",
    help="Show, follow and end runs, of this machine or of a mesh.",
    epilog="\b\nExamples:\n  stepflow runs list --status interrupted\n  stepflow runs show last\n"
    "  stepflow runs watch 0198f3 --server mesh:7840",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MESH_STATUSES = ("queued", "running", *ENDED)
LOCAL_STATUSES = ("running", "interrupted", "damaged", *ENDED)


@app.command("list")
def list_runs(
    *,
    server: TargetServerOption = None,
    store: TargetStoreOption = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status",
            metavar="STATUS",
            help="Only runs with this status (repeatable): queued, running, interrupted, completed, failed, damaged, …",
        ),
    ] = None,
    flow: Annotated[
        str,
        typer.Option(
            "--flow",
            metavar="NAME",
            help="Only runs of this flow, by its name; by its file if it has none.",
            autocompletion=complete_flow_without_tag,
        ),
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="K=V", help="Only runs with this label (repeatable: with all of them)."),
    ] = None,
    since: Annotated[
        str,
        typer.Option("--since", metavar="D|TIME", help="Only runs begun since: 24h, 2d, 2026-01-31, 2026-01-31T08:30."),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="List at most N runs.")] = 100,
    json: JsonOption = False,
) -> None:
    """List runs, the newest first, including those in progress.

    An interrupted run of this machine has not ended, and no process drives it: `stepflow resume` continues it. A
    damaged run cannot be read. A queued run of a mesh waits for an executor or a host: `stepflow runs show` shows why.

    \b
    Examples:
      stepflow runs list
      stepflow runs list --status interrupted --status failed
      stepflow runs list --flow greet --label team=red --since 24h
      stepflow runs list --server mesh:7840 --limit 20
      stepflow runs list --json | jq '.runs[].run_id'
    """
    from stepflow.cli.display.runs import print_runs
    from stepflow.cli.display.trees import run_tree
    from stepflow.cli.sources import source_of
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_target
    from stepflow.cli.wanted_runs import WantedRuns, read_labels, read_since

    labels, since_ms = read_labels(label or ()), read_since(since) if since else 0
    target = choose_target(server, store)
    known = LOCAL_STATUSES if target.server is None else MESH_STATUSES
    for name in status or ():
        console.check_choice("--status", name, known)

    wanted = WantedRuns(statuses=tuple(status or ()), flow=flow, labels=labels, since_ms=since_ms, since=since)
    found = source_of(target).list(wanted, limit)
    if json:
        print_json({"runs": [run_tree(run, shown) for run, shown in found]})
    elif found:
        print_runs(found)
    else:
        _say_none(target, wanted)


def _say_none(target: "CliTarget", wanted: "WantedRuns") -> None:
    """Tell that a list is empty, and which other places have runs."""
    from stepflow.cli.sources import with_runs

    console.say(f"no {wanted} in {target}")
    for other in with_runs(target):
        console.say(f"{other} has runs: stepflow runs list {other.option}")


@app.command("show")
def show_run(
    *,
    run_id: RunArgument,
    server: TargetServerOption = None,
    store: TargetStoreOption = None,
    json: JsonOption = False,
    result: Annotated[
        bool, typer.Option("--result", help="Print the result of an ended run instead, of any size, as `run` does.")
    ] = False,
    item: Annotated[
        int | None, typer.Option("--item", min=0, metavar="N", help="Print the result of this item of a batch, from 0.")
    ] = None,
    error: Annotated[
        bool, typer.Option("--error", help="Show what has failed instead: step, attempt, host, and the traceback.")
    ] = False,
    output: OutputOption = None,
) -> None:
    """Show a run: its status, its items and its steps. With --result, print what it has computed.

    Results of more than 16 MiB are not in the JSON: their length is. --error shows the failed steps with the frames of
    their exceptions, of the whole run or of one --item.

    \b
    Examples:
      stepflow runs show last
      stepflow runs show 0198f3
      stepflow runs show 0198f3 --error
      stepflow runs show 0198f3 --server mesh:7840 --json | jq '.items[].result'
      stepflow runs show 0198f3 --output result.json
    """
    if error:
        if json or result or output is not None:
            raise console.Usage("OPTION_INVALID", "--error excludes --json, --result and --output")
        _print_errors(run_id, server, store, item)
        return
    if result or item is not None or output is not None:
        if json:
            raise console.Usage("OPTION_INVALID", "--result, --item and --output exclude --json")
        print_result(run_id, server, store, item, output)
        return

    print_facts(run_id, server, store, steps=True, json=json)


def print_facts(run_id: str, server: str | None, store: Path | None, *, steps: bool, json: bool) -> None:
    """Print status and items of a run, and its steps if they are wanted. Raises: StepflowError."""
    from stepflow.cli.display.runs import print_run, print_steps
    from stepflow.cli.display.trees import item_tree, run_tree, step_tree
    from stepflow.cli.sources import choose
    from stepflow.cli.tables import print_json

    shown = choose(server, store).read(run_id, steps=steps, results=json)
    if json:
        tree = run_tree(shown.run, shown.status)
        tree["labels"] = shown.run.labels
        tree["items"] = [item_tree(each.item, each.status, each.outcome) for each in shown.items]
        print_json(tree | ({"steps": [step_tree(step) for step in shown.steps]} if steps else {}))
        return

    print_run(shown)
    if shown.steps:
        console.show()
        print_steps(shown.steps, shown.redactor)


def _print_errors(run_id: str, server: str | None, store: Path | None, item: int | None) -> None:
    """Print the failures of a run, or of one item. Raises: StepflowError."""
    from stepflow.cli.display.runs import print_failures
    from stepflow.cli.sources import choose

    print_failures(choose(server, store).read(run_id, steps=True, results=False), item)


def print_result(run_id: str, server: str | None, store: Path | None, item: int | None, output: Path | None) -> None:
    """Print the results of an ended run as `run` does, or the result of one item. Raises: StepflowError, typer.Exit."""
    from stepflow.cli.display.outcome import finish, write
    from stepflow.cli.output import check_output
    from stepflow.cli.sources import choose

    check_output(output)
    source = choose(server, store)
    if item is not None:
        results, command = source.result(run_id, item)
        write(results, output, command, batch=False)
        return
    ended, redactor = source.ended(run_id)
    finish(ended, redactor, output, batch=bool(ended.run.labels.get("batch", ended.run.items_total != 1)))


app.command("watch")(watch_run)
app.command("logs")(show_logs)


@app.command("cancel")
def cancel_run(
    *,
    run_ids: RunArguments,
    server: ServerOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when the runs have ended.")] = True,
    json: JsonOption = False,
) -> None:
    """Cancel runs of a mesh: no further step starts. Calls in flight are cancelled where their servers can.

    A run that has ended is not changed. The exit code is 1 when a run has not ended within 10 seconds.

    \b
    Examples:
      stepflow runs cancel 0198f3
      stepflow runs cancel 0198f3 0198f4 --server mesh:7840 --no-wait
    """
    from stepflow.cli import remote
    from stepflow.cli.display.trees import run_tree
    from stepflow.cli.tables import print_json
    from stepflow.cli.target import choose_mesh

    mesh = choose_mesh(server)

    async def cancel(client: "Client") -> "list[Run]":
        found = [await remote.find_run(client, run_id, mesh) for run_id in run_ids]
        cancelled = [await client.cancel(run_id) for run_id in found]
        if not wait:
            return cancelled
        return [await client.wait(run.run_id, timeout_s=remote.CANCEL_WAIT_S) for run in cancelled]

    runs = remote.ask(mesh, cancel)
    if json:
        print_json({"runs": [run_tree(run) for run in runs]})
    for run in runs:
        console.say(f"{run.run_id} {run.status}" if run.ended else f"{run.run_id} was told to end")
    if wait and not all(run.ended for run in runs):
        raise typer.Exit(console.EXIT_FAILED)


@app.command("signal")
def signal_run(
    *,
    run_id: RunArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal that the step waits for.")],
    server: TargetServerOption = None,
    store: TargetStoreOption = None,
    payload: Annotated[
        str | None, typer.Option("--payload", metavar="VALUE", help=f"The payload: {VALUE_HELP} Default: null.")
    ] = None,
    payload_json: Annotated[str | None, typer.Option("--payload-json", hidden=True)] = None,
    payload_yaml: Annotated[str | None, typer.Option("--payload-yaml", hidden=True)] = None,
    item: Annotated[int, typer.Option("--item", min=0, metavar="N", help="The item of a batch, from 0.")] = 0,
    signal_id: Annotated[
        str | None,
        typer.Option(
            "--signal-id", metavar="UUID", help="Id of the signal; repeating the command sends no second signal."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Send a run a signal that a step waits for.

    A step of `/builtin/wait_for_signal` receives it, also one that starts to wait later.

    A local run receives the signal when it is driven: stop the run, signal it, and continue it with `stepflow resume`.

    \b
    Examples:
      stepflow runs signal 0198f3 approved --server mesh:7840
      stepflow runs signal 0198f3 approved --payload '{"by": "Ada"}'
      stepflow runs signal 0198f3 approved --item 7
    """
    from stepflow.cli.input.values import read_payload
    from stepflow.cli.sources import Signal, choose
    from stepflow.cli.tables import print_json

    value = read_payload(ValueOptions(payload, payload_json, payload_yaml))
    found, sent = choose(server, store).signal(run_id, Signal(name, value, item, signal_id or ""))
    if json:
        print_json({"run_id": found, "signal_id": sent})
    console.say(f"signalled {found}: {name}")


@app.command("delete")
def delete_run(
    *,
    run_ids: RunArguments,
    server: TargetServerOption = None,
    store: TargetStoreOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Delete runs that have not ended, too; a mesh cancels them first, the local store does not."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Delete runs that have ended. Their results, history and blobs go with them.

    \b
    Examples:
      stepflow runs delete 0198f3
      stepflow runs delete 0198f3 0198f4 --server mesh:7840 --force
    """
    from stepflow.cli.sources import choose
    from stepflow.cli.tables import print_json

    source = choose(server, store)
    deleted = []
    for run_id in run_ids:
        deleted.append(source.delete(run_id, force=force))
        console.say(f"deleted {deleted[-1]}")
    if json:
        print_json({"run_ids": deleted})


app.command("prune")(prune_runs)
