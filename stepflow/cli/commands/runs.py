"""`stepflow runs`: what runs there are, on this machine or in a mesh, how one of them went, and its end.

`list`, `get`, `steps`, `signal` and `delete` are for the local store unless a server is named; `watch` and `cancel` for
runs of a mesh. Which is which is decided in `sources`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.options import OutputOption
from stepflow.cli.remote import JsonOption, LocalOrServerOption, RunArgument, ServerOption

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepflow.cli.display.outcome import AnyRun
    from stepflow.cli.sources import ShownRun
    from stepflow.client import Client, Event, Run
    from stepflow.flow import Redactor
    from stepflow.run.views import StepView

app = typer.Typer(
    name="runs",
    help="Show and end runs, those that this machine keeps or those of a mesh.",
    epilog="\b\nExamples:\n  stepflow runs list --status interrupted\n  stepflow runs get 0198f3 --steps\n"
    "  stepflow runs watch 0198f3 --server mesh:7840",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Where runs are kept. Default: .stepflow here.")
]
RunArguments = Annotated[list[str], typer.Argument(metavar="RUN_ID...", help="The runs, or how their ids begin.")]

STATUSES = ("running", "completed", "failed", "cancelled", "recovery_failed")
"""Of a mesh; on this machine a run can also be interrupted."""


@app.command("list")
def list_runs(
    *,
    server: LocalOrServerOption = None,
    store: StoreOption = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status", metavar="STATUS", help="Only these (repeatable): running, interrupted, completed, failed, …"
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most so many.")] = 100,
    json: JsonOption = False,
) -> None:
    """List runs, the newest first, also while they run.

    An interrupted run has not ended, and no process drives it: `stepflow resume` goes on with it.

    \b
    Examples:
      stepflow runs list
      stepflow runs list --status interrupted --status failed
      stepflow runs list --server mesh:7840 --limit 20
      stepflow runs list --json | jq '.runs[].run_id'
    """
    from stepflow.cli.display.outcome import run_name, run_tree
    from stepflow.cli.sources import Remote, choose
    from stepflow.cli.tables import print_json, print_table

    source = choose(server, store)
    known = STATUSES if isinstance(source, Remote) else (*STATUSES, "interrupted")
    for name in status or ():
        if name not in known:
            raise console.Usage("OPTION_INVALID", f"--status is one of {', '.join(known)}, not {name!r}")
    found = source.list(status or (), limit)
    if json:
        print_json({"runs": [run_tree(run, shown) for run, shown in found]})
    elif found:
        rows = [(run.run_id, shown, run_name(run), _counts(run), _began(run), _took(run)) for run, shown in found]
        print_table(("RUN_ID", "STATUS", "FLOW", "ITEMS", "BEGAN", "TOOK"), rows)
    else:
        console.say(f"no runs in {source.place}")


@app.command("get")
def get_run(
    *,
    run_id: RunArgument,
    server: LocalOrServerOption = None,
    store: StoreOption = None,
    steps: Annotated[bool, typer.Option("--steps", help="Show the steps that have begun.")] = False,
    json: JsonOption = False,
) -> None:
    """Show a run: its status, its items, and its steps if wanted.

    \b
    Examples:
      stepflow runs get 0198f3
      stepflow runs get 0198f3 --steps
      stepflow runs get 0198f3 --server mesh:7840 --json | jq '.items[].result'
    """
    from stepflow.cli.display.outcome import result_tree, run_tree
    from stepflow.cli.sources import choose
    from stepflow.cli.tables import print_json

    shown = choose(server, store).read(run_id, steps=steps)
    if json:
        tree = run_tree(shown.run, shown.status)
        tree["items"] = [
            {"item": item.item, "status": item.status}
            | ({} if item.outcome is None else {"result": result_tree(item.outcome, shown.status)})
            for item in shown.items
        ]
        print_json(tree | ({"steps": [_step_tree(view) for view in shown.steps]} if steps else {}))
        return
    _print_run(shown)
    if steps:
        typer.echo()
        _print_steps(shown.steps, shown.redactor)


@app.command("steps")
def list_steps(
    *, run_id: RunArgument, server: LocalOrServerOption = None, store: StoreOption = None, json: JsonOption = False
) -> None:
    """List the steps of a run that have begun, those of its sub-runs too.

    \b
    Examples:
      stepflow runs steps 0198f3
      stepflow runs steps 0198f3 --server mesh:7840 --json | jq '.steps[] | select(.status == "failed")'
    """
    from stepflow.cli.sources import choose
    from stepflow.cli.tables import print_json

    shown = choose(server, store).read(run_id, steps=True)
    if json:
        print_json({"run_id": shown.run.run_id, "steps": [_step_tree(view) for view in shown.steps]})
    else:
        _print_steps(shown.steps, shown.redactor)


@app.command("watch")
def watch_run(
    *,
    run_id: RunArgument,
    server: ServerOption = None,
    output: OutputOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON, and no results.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the steps.")] = False,
) -> None:
    """Follow a run of a mesh, from its beginning to its end, and print its result as `stepflow submit` does.

    Ctrl-C ends the watching, not the run. The exit code is 1 when the run failed.

    \b
    Examples:
      stepflow runs watch 0198f3
      stepflow runs watch 0198f3 --server mesh:7840 --output result.json
      stepflow runs watch 0198f3 --json | jq -r .kind
    """
    from stepflow.cli import remote
    from stepflow.cli.display.follow import Following, event_tree, follow
    from stepflow.cli.display.live import choose_view
    from stepflow.cli.display.outcome import finish
    from stepflow.cli.tables import print_json_line
    from stepflow.cli.values import check_output

    check_output(output)

    async def find(client: "Client") -> "tuple[Run, Redactor]":
        run = await client.get(await remote.find_run(client, run_id))
        return run, await remote.redactor(client, run)

    run, redactor = remote.ask(server, find)

    def show(event: "Event") -> None:
        print_json_line(event_tree(event))

    view = choose_view(redactor.text, quiet=quiet or json)
    following = Following(server, view, on_event=show if json else None)

    async def begin(client: "Client") -> tuple[str, int]:  # noqa: ARG001  # the run is there
        return run.run_id, run.items_total

    ended = follow(following, begin)
    finish(ended, redactor, output, batch=_is_batch(run), results=not json)


@app.command("cancel")
def cancel_run(
    *,
    run_ids: RunArguments,
    server: ServerOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when the runs have ended.")] = True,
    json: JsonOption = False,
) -> None:
    """Cancel runs of a mesh: no step begins any more, calls in flight are cancelled where their servers can.

    A run that has ended already stays as it is. The exit code is 1 when a run has not ended after 10 seconds.

    \b
    Examples:
      stepflow runs cancel 0198f3
      stepflow runs cancel 0198f3 0198f4 --server mesh:7840 --no-wait
    """
    from stepflow.cli import remote
    from stepflow.cli.display.outcome import run_tree
    from stepflow.cli.tables import print_json

    async def work(client: "Client") -> "list[Run]":
        found = [await remote.find_run(client, run_id) for run_id in run_ids]
        cancelled = [await client.cancel(run_id) for run_id in found]
        return (
            [await client.wait(run.run_id, timeout_s=remote.CANCEL_WAIT_S) for run in cancelled] if wait else cancelled
        )

    runs = remote.ask(server, work)
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
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the step waits for.")],
    server: LocalOrServerOption = None,
    store: StoreOption = None,
    payload: Annotated[
        Path | None, typer.Option("--payload", metavar="FILE", help="What the step gets, YAML or JSON. Default: null.")
    ] = None,
    payload_json: Annotated[
        str | None, typer.Option("--payload-json", metavar="JSON", help="The same as JSON text.")
    ] = None,
    payload_yaml: Annotated[
        str | None, typer.Option("--payload-yaml", metavar="YAML", help="The same as YAML text.")
    ] = None,
    item: Annotated[int, typer.Option("--item", min=0, metavar="N", help="Which item of a batch; from 0.")] = 0,
    signal_id: Annotated[
        str | None,
        typer.Option("--signal-id", metavar="UUID", help="The same command again sends no second signal."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Send a run a signal, which a step of `/builtin/wait_for_signal` waits for, or will.

    A run of this machine takes it when it is driven: stop it, signal it, and `stepflow resume` goes on with it.

    \b
    Examples:
      stepflow runs signal 0198f3 approved --server mesh:7840
      stepflow runs signal 0198f3 approved --payload-json '{"by": "Ada"}'
      stepflow runs signal 0198f3 approved --item 7
    """
    from stepflow.cli.options import ValueOptions
    from stepflow.cli.sources import Signal, choose
    from stepflow.cli.tables import print_json
    from stepflow.cli.values import read_payload

    value = read_payload(ValueOptions(payload, payload_json, payload_yaml))
    found, sent = choose(server, store).signal(run_id, Signal(name, value, item, signal_id or ""))
    if json:
        print_json({"run_id": found, "signal_id": sent})
    console.say(f"signalled {found}: {name}")


@app.command("delete")
def delete_run(
    *,
    run_ids: RunArguments,
    server: LocalOrServerOption = None,
    store: StoreOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also what has not ended: cancelled first, in a mesh; given up, here.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Delete runs that have ended, with everything that belongs to them: results, history, blobs.

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


# --- for programs ------------------------------------------------------------------------------------------------


def _step_tree(step: "StepView") -> dict[str, Any]:
    from stepflow.codec import decode
    from stepflow.run.entries import flow_result

    return {
        "run_id": step.run_id,
        "item": step.item,
        "step_id": step.step_id,
        "component": step.component,
        "depth": step.depth,
        "status": step.status,
        "attempt": step.attempt,
        "retries": step.retries,
        "started_at_ms": step.started_at_ms,
        "completed_at_ms": step.completed_at_ms,
        "result": None if step.outcome is None else decode(flow_result(step.outcome)),
    }


# --- for people --------------------------------------------------------------------------------------------------


def _print_run(shown: "ShownRun") -> None:
    from stepflow.cli.display.live import clock, duration, plain
    from stepflow.cli.tables import print_members
    from stepflow.errors import Failure

    run = shown.run
    lines = [
        ("run", run.run_id),
        ("status", shown.status),
        ("flow", " ".join(dict.fromkeys(filter(None, (run.flow_name, run.labels.get("flow")))))),
    ]
    if "config" in run.labels:  # a mesh has its own
        lines.append(("config", run.labels["config"] or "(default)"))
    lines.append(("began", clock(run.created_at_ms)))
    if run.completed_at_ms is not None:
        lines.append(("took", duration(run.completed_at_ms - run.created_at_ms)))
    if run.items_total != 1:
        counts = f"{run.items_total:,}, {run.items_completed:,} completed, {run.items_failed:,} failed"
        lines.append(("items", counts))
    for item in shown.items:
        if isinstance(item.outcome, Failure):
            text = f"{item.outcome.code.name}: {plain(item.outcome.message, shown.redactor.text)}"
            lines.append((f"item {item.item}", text))
    print_members(lines)


def _print_steps(views: "Iterable[StepView]", redactor: "Redactor") -> None:
    from stepflow.cli.display.live import duration, plain
    from stepflow.cli.tables import print_table
    from stepflow.errors import Failure

    rows = []
    for step in views:
        took = ""
        if step.started_at_ms is not None and step.completed_at_ms is not None:
            took = duration(step.completed_at_ms - step.started_at_ms)
        failure = step.outcome if isinstance(step.outcome, Failure) else None
        text = "" if failure is None else f"{failure.code.name}: {plain(failure.message, redactor.text)}"
        name = "  " * step.depth + step.step_id
        rows.append((name, str(step.item), step.component, step.status, str(step.attempt or ""), took, text))
    print_table(("STEP", "ITEM", "COMPONENT", "STATUS", "ATTEMPT", "TOOK", ""), rows)


def _is_batch(run: "AnyRun") -> bool:
    return bool(run.labels.get("batch", run.items_total != 1))


def _counts(run: "AnyRun") -> str:
    done = run.items_completed + run.items_failed + run.items_cancelled
    return f"{done}/{run.items_total}" + (f" ({run.items_failed} failed)" if run.items_failed else "")


def _began(run: "AnyRun") -> str:
    from stepflow.cli.display.live import clock

    return clock(run.created_at_ms)


def _took(run: "AnyRun") -> str:
    from stepflow.cli.display.live import duration

    return "" if run.completed_at_ms is None else duration(run.completed_at_ms - run.created_at_ms)
