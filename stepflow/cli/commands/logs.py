"""`stepflow runs logs`: what the components of a run have logged and printed."""

from typing import TYPE_CHECKING, Annotated

import typer

from stepflow.cli.options import JsonOption, RunArgument, TargetServerOption, TargetStoreOption

if TYPE_CHECKING:
    from stepflow.cli.log_sources import LogEntry
    from stepflow.flow import Redactor

_OTHERS_SHOWN = 10
"""Other steps that are named if the wanted one has no lines."""


def show_logs(
    *,
    run_id: RunArgument,
    step: Annotated[
        str | None, typer.Argument(metavar="[STEP]", help="Only this step: its id, or 7/ask for item 7 of a batch.")
    ] = None,
    server: TargetServerOption = None,
    store: TargetStoreOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what the components of a run have logged and printed.

    A local run keeps the last 4 MiB. A mesh has the recent lines of its hosts, and the last lines of each failed step.

    \b
    Examples:
      stepflow runs logs last
      stepflow runs logs 0198f3 ask --follow
      stepflow runs logs 0198f3 7/ask --server mesh:7840
      stepflow runs logs 0198f3 --json | jq -r .text
    """
    from stepflow.cli.display.texts import log_label
    from stepflow.cli.log_sources import StepFilter, open_logs

    source = open_logs(server, store, run_id)
    wanted = StepFilter.of(step)
    found = False
    others: dict[str, None] = {}

    def show(entry: "LogEntry") -> None:
        nonlocal found
        if not wanted.matches(entry):
            if len(others) < _OTHERS_SHOWN:
                others[log_label(entry.log, batch=source.batch)] = None
        else:
            found = True
            _print(entry, source.redactor, batch=source.batch, json=json)

    source.read(show, follow=follow)
    if not found:
        from stepflow.cli import console

        some = f"; there are some of {', '.join(others)}" if others else ""
        console.say(f"no log lines of run {source.run_id}{'' if step is None else f', step {step}'}{some}")


def _print(entry: "LogEntry", redactor: "Redactor", *, batch: bool, json: bool) -> None:
    from stepflow.cli import console
    from stepflow.cli.display.texts import clock, log_label, log_line_text
    from stepflow.cli.tables import print_json_line

    log = entry.log
    if not json:
        label = log_label(log, batch=batch)
        attempt = f" (attempt {log.attempt})" if log.attempt > 1 else ""
        if log.dropped:
            console.show(f"{'':8}  {label}{attempt} | … {log.dropped:,} lines left out")
        for line in log.lines:
            console.show(f"{clock(line.at_ms)}  {label}{attempt} | {log_line_text(line, redactor.text)}")
        return

    facts = {"run_id": log.run_id, "item": log.item, "step_id": log.step_id, "attempt": log.attempt}
    origin = facts if log.run_id else {"plugin": log.step_id}
    dropped = {"dropped": log.dropped} if log.dropped else {}
    for line in log.lines:
        level = {"level": line.level} if line.level else {}
        print_json_line(origin | dropped | {"at_ms": line.at_ms} | level | {"text": redactor.text(line.text)})
        dropped = {}
