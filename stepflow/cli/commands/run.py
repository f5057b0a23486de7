"""`stepflow run` and `stepflow resume`: a flow on this machine, durable in `.stepflow/`.

`stepflow.cli.driving` drives the run; `stepflow.cli.display` shows progress and results.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.completion import complete_run
from stepflow.cli.options import (
    RUN_HELP,
    ConfigOption,
    FlowOption,
    JsonOption,
    MaxConcurrencyOption,
    NoCheckOption,
    OutputOption,
    QuietOption,
    RunOptions,
    StoreOption,
    with_flow,
    with_run_options,
)

if TYPE_CHECKING:
    from stepflow.config import Config
    from stepflow.embedded.runs_folder import LocalRuns


@with_flow
@with_run_options
def run(
    *,
    flow: FlowOption,
    config: ConfigOption = None,
    given: RunOptions,
    max_concurrency: MaxConcurrencyOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
    store: StoreOption = None,
    no_check: NoCheckOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a flow on this machine. Print its result as JSON, or those of a batch as JSONL while it runs.

    Before its first step the flow is checked against the components that exist. The run survives this process: after a
    crash or Ctrl-C, `stepflow resume` continues it. With --json, the result is an object: the run, and the results of
    its items. The exit code is 1 when the flow (or an item of a batch) failed.

    \b
    Examples:
      stepflow run flow.yaml --input '{"name": "Ada"}'
      stepflow run flow.yaml --input input.yaml --output result.json
      stepflow run flow.yaml --inputs items.jsonl --max-concurrency 4
      stepflow run flow.yaml --input input.yaml --var tone=terse --set ask.input.model=small
      echo '{"name": "Ada"}' | stepflow run flow.yaml --env-variables
    """
    from stepflow.cli.display.outcome import finish
    from stepflow.cli.display.streamed import ResultStream
    from stepflow.cli.display.view import choose_view
    from stepflow.cli.driving import Job, drive, retain
    from stepflow.cli.found_flow import check_stdin, find_flow
    from stepflow.cli.input.documents import read_config
    from stepflow.cli.input.given import read_given
    from stepflow.cli.output import check_output
    from stepflow.cli.run_check import RunCheck
    from stepflow.embedded.mesh import check_inputs, check_request, run_request
    from stepflow.flow import apply_overrides
    from stepflow.ids import new_run_id

    # 1. Check the whole command line: nothing starts before all of it is known to be right.
    check_output(output)
    check_stdin(flow, *given.values)
    found = find_flow(flow)
    parsed, loaded = found.flow, read_config(config, found.path)
    check = RunCheck(found, loaded, no_check=no_check)
    check.check_flow()
    values = read_given(given, parsed, stdin_taken=flow == "-")

    run_id = new_run_id()
    request = run_request(
        parsed,
        (),
        config=loaded,
        run_id=run_id,
        variables=values.variables,
        overrides=values.overrides,
        concurrency_max=max_concurrency,
        check_input=not no_check,
        labels=_labels(found.label, loaded, batch=values.inputs.batch),
    )
    check_request(parsed, request)
    check.check_values(values.variables, values.overrides)
    check_inputs(parsed, values.inputs.values, schema=request.check_input)

    # 2. Drive the run to its end.
    view = choose_view(values.redactor.text, quiet=quiet)
    stream = ResultStream(output, view, ordered=not given.unordered) if values.inputs.batch and not json else None
    job = Job(
        local=_local(store, quiet=quiet),
        run_id=run_id,
        config=loaded,
        flow=parsed if values.overrides is None else apply_overrides(parsed, values.overrides),
        redactor=values.redactor,
        view=view,
        request=request,
        inputs=values.inputs.values,
        check=check.check_servers,
        stream=stream,
    )
    ended = drive(job)

    # 3. Print how it ended, then remove old runs.
    try:
        finish(ended, values.redactor, output, batch=values.inputs.batch, json=json, stream=stream)
    finally:
        retain(job)


def resume(
    *,
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help=f"{RUN_HELP} Default: the unfinished run.", autocompletion=complete_run),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Plugins and routes. Default: the config the run began with."),
    ] = None,
    output: OutputOption = None,
    json: JsonOption = False,
    store: StoreOption = None,
    quiet: QuietOption = False,
) -> None:
    """Continue an interrupted run, from its last successful step.

    Completed steps are not repeated. For a run that has ended, the result is printed. Without an id there must be
    exactly one unfinished run; if there are several, they are listed, and the exit code is 2.

    \b
    Examples:
      stepflow resume
      stepflow resume 0198f3
      stepflow resume 0198f3 --config other-config.yml --output result.json
    """
    import asyncio

    from stepflow.cli import stored
    from stepflow.cli.display.outcome import finish
    from stepflow.cli.display.streamed import ResultStream
    from stepflow.cli.display.view import choose_view
    from stepflow.cli.driving import drive, retain
    from stepflow.cli.input.documents import read_config
    from stepflow.cli.output import check_output

    check_output(output)
    local = _local(store, quiet=quiet)
    chosen = local.find(run_id) if run_id is not None else stored.only_unfinished(local)
    found = asyncio.run(stored.read_run(local, chosen))

    batch = bool(found.labels.get("batch"))
    if found.ended is not None:
        finish(found.ended, found.redactor, output, batch=batch, json=json)
        return

    other = None if config is None else read_config(config)
    job = stored.make_job(local, found, other, choose_view(found.redactor.text, quiet=quiet))
    if batch and not json:
        job.stream = ResultStream(output, job.view, ordered=True)
    ended = drive(job)
    try:
        finish(ended, found.redactor, output, batch=batch, json=json, stream=job.stream)
    finally:
        retain(job)


def _local(store: Path | None, *, quiet: bool) -> "LocalRuns":
    from stepflow.cli.target import choose_folder
    from stepflow.embedded.runs_folder import LocalRuns

    local = LocalRuns(choose_folder(store, quiet=quiet))
    exposure = local.exposure()
    if exposure:
        console.warn(exposure)
    return local


def _labels(flow: str, config: "Config", *, batch: bool) -> dict[str, Any]:
    """Return the labels by which `resume` finds the flow and config of the run again."""
    return {
        "flow": flow,
        "config": None if config.source is None else str(config.source),
        "config_digest": config.digest,
        "working_directory": str(config.working_directory),
        "batch": batch,
    }
