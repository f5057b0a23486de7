"""`stepflow run` and `stepflow resume`: a flow on this machine, durable in `.stepflow/`.

What they do is in `driving`; how it is shown, in `live`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.options import (
    ConfigOption,
    EnvVariablesOption,
    FlowOption,
    InputJsonOption,
    InputOption,
    InputOptions,
    InputsOption,
    InputYamlOption,
    OutputOption,
    OverridesJsonOption,
    OverridesOption,
    OverridesYamlOption,
    StdinFormatOption,
    ValueOptions,
    VariableOptions,
    VariablesJsonOption,
    VariablesOption,
    VariablesYamlOption,
)

if TYPE_CHECKING:
    from stepflow.config import Config
    from stepflow.embedded.runs_folder import LocalRuns
    from stepflow.flow import Flow

StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Where runs are kept. Default: .stepflow here.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the steps.")]


def run(
    *,
    flow: FlowOption,
    config: ConfigOption = None,
    input_file: InputOption = None,
    input_json: InputJsonOption = None,
    input_yaml: InputYamlOption = None,
    inputs: InputsOption = None,
    stdin_format: StdinFormatOption = "json",
    variables: VariablesOption = None,
    variables_json: VariablesJsonOption = None,
    variables_yaml: VariablesYamlOption = None,
    env_variables: EnvVariablesOption = False,
    overrides: OverridesOption = None,
    overrides_json: OverridesJsonOption = None,
    overrides_yaml: OverridesYamlOption = None,
    max_concurrency: Annotated[
        int | None, typer.Option("--max-concurrency", min=1, metavar="N", help="Steps in flight at once. Default: 10.")
    ] = None,
    output: OutputOption = None,
    store: StoreOption = None,
    no_validate_input: Annotated[
        bool, typer.Option("--no-validate-input", help="Do not check the input against the flow's schema.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Run a flow and print its result as JSON, or a batch as JSONL in the order of the inputs.

    The run survives this process: after a crash or Ctrl-C, `stepflow resume` goes on where it was. The exit code is 1
    when the flow (or an item of a batch) failed.

    \b
    Examples:
      stepflow run --flow flow.yaml --input-json '{"name": "Ada"}'
      stepflow run --flow flow.yaml --input input.yaml --output result.json
      stepflow run --flow flow.yaml --inputs items.jsonl --max-concurrency 4
      echo '{"name": "Ada"}' | stepflow run --flow flow.yaml --env-variables
    """
    import os

    from stepflow.cli.values import (
        check_output,
        read_config,
        read_flow,
        read_inputs,
        read_overrides,
        read_variables,
    )

    check_output(output)
    parsed, loaded = read_flow(flow), read_config(config, flow)
    _check(flow, parsed, loaded)
    given = read_inputs(InputOptions(input_file, input_json, input_yaml, inputs, stdin_format), parsed)
    values = VariableOptions(ValueOptions(variables, variables_json, variables_yaml), env_variables)
    from stepflow.cli.display.live import choose_view
    from stepflow.cli.display.outcome import finish
    from stepflow.cli.driving import Job, drive
    from stepflow.codec import Json
    from stepflow.embedded.mesh import check_request, run_request
    from stepflow.flow import Redactor, apply_overrides
    from stepflow.ids import new_run_id

    run_id = new_run_id()
    patches = read_overrides(ValueOptions(overrides, overrides_json, overrides_yaml))
    supplied = read_variables(values, parsed, os.environ)
    request = run_request(
        parsed,
        given.values,
        config=loaded,
        run_id=run_id,
        variables=supplied,
        overrides=patches,
        concurrency_max=max_concurrency,
        check_input=not no_validate_input,
        labels=_labels(flow, loaded, batch=given.batch),
    )
    check_request(parsed, request)
    redactor = Redactor(parsed, map(Json, given.values), supplied)
    job = Job(
        local=_local(store),
        run_id=run_id,
        config=loaded,
        flow=parsed if patches is None else apply_overrides(parsed, patches),
        redactor=redactor,
        view=choose_view(redactor.text, quiet=quiet),
        request=request,
    )
    finish(drive(job), redactor, output, batch=given.batch)


def resume(
    *,
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="[RUN_ID]", help="The run, or how its id begins. Default: the unfinished one."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Plugins and routes. Default: those the run began with."),
    ] = None,
    output: OutputOption = None,
    store: StoreOption = None,
    quiet: QuietOption = False,
) -> None:
    """Go on with a run that a crash or Ctrl-C has interrupted, from its last successful step.

    Nothing that has ended is done again. A run that has ended already just prints its result. Without an id there must
    be one unfinished run; if there are several, they are listed, and the exit code is 2.

    \b
    Examples:
      stepflow resume
      stepflow resume 0198f3
      stepflow resume 0198f3 --config other-config.yml --output result.json
    """
    import asyncio

    from stepflow.cli import stored
    from stepflow.cli.display.live import choose_view
    from stepflow.cli.display.outcome import finish
    from stepflow.cli.driving import drive
    from stepflow.cli.values import check_output, read_config

    check_output(output)
    local = _local(store)
    chosen = local.find(run_id) if run_id is not None else asyncio.run(stored.only_unfinished(local))
    found = asyncio.run(stored.read_run(local, chosen))
    ended = found.ended
    if ended is None:
        other = None if config is None else read_config(config)
        ended = drive(stored.job(local, found, other, choose_view(found.redactor.text, quiet=quiet)))
    finish(ended, found.redactor, output, batch=bool(found.labels.get("batch")))


def _local(store: Path | None) -> "LocalRuns":
    from stepflow.embedded.runs_folder import DEFAULT_FOLDER, LocalRuns

    return LocalRuns(store or DEFAULT_FOLDER)


def _check(path: Path, flow: "Flow", config: "Config") -> None:
    """Stop when the flow or the config cannot be right; show what was overlooked in them, count the rest, and go on."""
    from stepflow.cli.commands.validate import check, passes, print_report
    from stepflow.errors import Invalid

    diagnostics = check(flow, config)
    if not passes(diagnostics):
        print_report(diagnostics)
        raise Invalid("FLOW_INVALID", "the flow was not run; the diagnostics above say why")
    for text in (*config.warnings, *(f"{path}: {warning.path}: {warning.formatted}" for warning in flow.warnings)):
        console.warn(text)
    # Experimental ones fire for every path into a result: said at each run they would only teach to look away.
    others = sum(item.level == "warning" and not item.experimental for item in diagnostics) - len(flow.warnings)
    if others:
        console.say(console.styled(f"{others} warning(s): stepflow validate --flow {path} shows them", "dim"))


def _labels(flow: Path, config: "Config", *, batch: bool) -> dict[str, Any]:
    """What `resume` needs to find again what the run began with."""
    return {
        "flow": str(flow.absolute()),
        "config": None if config.source is None else str(config.source),
        "config_digest": config.digest,
        "working_directory": str(config.working_directory),
        "batch": batch,
    }
