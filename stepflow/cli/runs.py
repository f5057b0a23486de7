"""`stepflow runs`: what runs there are on this machine, and how one of them went. Reads the local store only."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stepflow.embedded import RunView
    from stepflow.flow import Redactor
    from stepflow.local import LocalRuns
    from stepflow.run.views import StepView

app = typer.Typer(
    name="runs",
    help="Show the runs that this machine keeps.",
    epilog="\b\nExamples:\n  stepflow runs list --status interrupted\n  stepflow runs get 0198f3 --steps",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Where runs are kept. Default: .stepflow here.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

_STYLES = {"completed": "green", "failed": "red", "recovery_failed": "red", "interrupted": "yellow", "running": "cyan"}


@app.command("list")
def list_runs(
    *,
    store: StoreOption = None,
    status: Annotated[
        list[str] | None,
        typer.Option("--status", metavar="STATUS", help="Only these (repeatable): interrupted, running, failed, …"),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List runs, the newest first, also while they run.

    An interrupted run has not ended, and no process drives it: `stepflow resume` goes on with it.

    \b
    Examples:
      stepflow runs list
      stepflow runs list --status interrupted --status failed
      stepflow runs list --json | jq '.runs[].run_id'
    """
    import asyncio

    from stepflow.cli import stored

    for name in status or ():
        if name not in stored.STATUSES:
            raise console.Usage("OPTION_INVALID", f"--status is one of {', '.join(stored.STATUSES)}, not {name!r}")
    local = _local(store)

    async def read() -> "list[tuple[RunView, str]]":
        return [found async for found in stored.list_runs(local) if not status or found[1] in status]

    found = asyncio.run(read())
    if json:
        _print_json({"runs": [_run_tree(run, shown) for run, shown in found]})
    elif found:
        rows = [
            (run.run_id, shown, stored.run_name(run), _counts(run), _ago(run.created_at_ms), _took(run))
            for run, shown in found
        ]
        _print_table(("RUN_ID", "STATUS", "FLOW", "ITEMS", "BEGAN", "TOOK"), rows)
    else:
        console.say(f"no runs in {local.folder}")


@app.command("get")
def get_run(
    *,
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="The run, or how its id begins.")],
    store: StoreOption = None,
    steps: Annotated[bool, typer.Option("--steps", help="Show the steps that have begun.")] = False,
    json: JsonOption = False,
) -> None:
    """Show a run: its status, its items, and its steps if wanted.

    \b
    Examples:
      stepflow runs get 0198f3
      stepflow runs get 0198f3 --steps
      stepflow runs get 0198f3 --json | jq '.items[].result'
    """
    import asyncio

    local = _local(store)
    chosen = local.find(run_id)
    tree, views, redactor = asyncio.run(_read(local, chosen, steps=steps))
    if json:
        _print_json(tree)
        return
    _print_run(tree, redactor)
    if steps:
        _print_steps(views, redactor)


async def _read(local: "LocalRuns", run_id: str, *, steps: bool) -> "tuple[dict[str, Any], list[StepView], Redactor]":
    from stepflow.cli import stored
    from stepflow.cli.driving import result_tree
    from stepflow.embedded import reader

    begun = await stored.read_run(local, run_id)
    store = await local.read(run_id)
    try:
        control = reader(store, local.blobs())
        run = await control.get_run(run_id)
        tree = _run_tree(run, stored.status_of(local, run))
        tree["items"] = [
            {"item": item.item, "status": item.status}
            | ({} if item.outcome is None else {"result": result_tree(item, run.status)})
            for item in await control.items(run_id)
        ]
        views = await control.steps(run_id) if steps else []
        if steps:
            tree["steps"] = [_step_tree(view) for view in views]
        return tree, views, begun.redactor
    finally:
        await store.close()


def _local(store: Path | None) -> "LocalRuns":
    from stepflow.local import DEFAULT_FOLDER, LocalRuns

    return LocalRuns(store or DEFAULT_FOLDER)


# --- for programs ------------------------------------------------------------------------------------------------


def _run_tree(run: "RunView", status: str) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "status": status,
        "flow_id": run.flow_id,
        "flow_name": run.flow_name or None,
        "flow": run.labels.get("flow"),
        "config": run.labels.get("config"),
        "items_total": run.items_total,
        "items_completed": run.items_completed,
        "items_failed": run.items_failed,
        "items_cancelled": run.items_cancelled,
        "created_at_ms": run.created_at_ms,
        "completed_at_ms": run.completed_at_ms,
    }


def _step_tree(step: "StepView") -> dict[str, Any]:
    from stepflow.codec import decode
    from stepflow.embedded import flow_result

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


def _print_json(tree: Any) -> None:
    import msgspec

    console.out(msgspec.json.format(msgspec.json.encode(tree), indent=2) + b"\n")


# --- for people --------------------------------------------------------------------------------------------------


def _print_run(tree: dict[str, Any], redactor: "Redactor") -> None:
    from stepflow.cli.live import clock, duration, plain

    lines = [
        ("run", tree["run_id"]),
        ("status", tree["status"]),
        ("flow", " ".join(filter(None, (tree["flow_name"], tree["flow"])))),
        ("config", tree["config"] or "(default)"),
        ("began", clock(tree["created_at_ms"])),
    ]
    if tree["completed_at_ms"] is not None:
        lines.append(("took", duration(tree["completed_at_ms"] - tree["created_at_ms"])))
    if tree["items_total"] != 1:
        lines.append(
            (
                "items",
                f"{tree['items_total']:,}, {tree['items_completed']:,} completed, {tree['items_failed']:,} failed",
            )
        )
    for item in tree["items"]:
        if item.get("result", {}).get("outcome") == "failed":
            error = item["result"]["error"]
            lines.append((f"item {item['item']}", f"{error['code']}: {plain(error['message'], redactor.text)}"))
    for name, value in lines:
        typer.echo(f"{name + ':':<10}{value}")


def _print_steps(views: "Iterable[StepView]", redactor: "Redactor") -> None:
    from stepflow.cli.live import duration, plain
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
    typer.echo()
    _print_table(("STEP", "ITEM", "COMPONENT", "STATUS", "ATTEMPT", "TOOK", ""), rows)


def _print_table(heads: "Sequence[str]", rows: "Iterable[Sequence[str]]") -> None:
    """Print columns on stdout, the last one as wide as it is."""
    table = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())


def _counts(run: "RunView") -> str:
    done = run.items_completed + run.items_failed + run.items_cancelled
    return f"{done}/{run.items_total}" + (f" ({run.items_failed} failed)" if run.items_failed else "")


def _ago(at_ms: int) -> str:
    from stepflow.cli.live import clock

    return clock(at_ms)


def _took(run: "RunView") -> str:
    from stepflow.cli.live import duration

    return "" if run.completed_at_ms is None else duration(run.completed_at_ms - run.created_at_ms)
