"""`stepflow submit`: a flow to a mesh, followed to its end unless told otherwise."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepflow.cli import console
from stepflow.cli.options import (
    EnvVariablesOption,
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
from stepflow.cli.remote import JsonOption, ServerOption

if TYPE_CHECKING:
    from stepflow.client import Client
    from stepflow.flow import Flow

FILE_SUFFIXES = (".yaml", ".yml", ".json")


def submit(
    *,
    flow: Annotated[
        str,
        typer.Option("--flow", "-f", metavar="FILE|NAME", help="A flow file, or a stored flow: NAME[@LABEL] or id."),
    ],
    server: ServerOption = None,
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
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Its `retry` goes with the run. Default: stepflow-config.yml beside the flow, or here.",
        ),
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option("--max-concurrency", min=1, metavar="N", help="Steps in flight at once. Default: 10.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end.")] = True,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", metavar="UUID", help="The run's id; the same command again makes no second run."),
    ] = None,
    output: OutputOption = None,
    json: JsonOption = False,
    no_validate_input: Annotated[
        bool, typer.Option("--no-validate-input", help="Do not check the input against the flow's schema.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the steps.")] = False,
) -> None:
    """Submit a flow to a mesh and print its result as JSON, or a batch as JSONL in the order of the inputs.

    Ctrl-C leaves the run to the mesh and says how to come back to it; a second one cancels it. With --no-wait, only the
    run's id is printed. With --json, the result is an object: the run, and the results of its items. The exit code is 1
    when the flow (or an item of a batch) failed.

    Plugins and routes are those of the mesh; of a configuration beside the flow, only the `retry` section counts.

    \b
    Examples:
      stepflow submit --flow flow.yaml --input-json '{"name": "Ada"}'
      stepflow submit --flow greet@live --input input.yaml --server mesh:7840
      stepflow submit --flow flow.yaml --inputs items.jsonl --output results.jsonl
      stepflow submit --flow flow.yaml --input input.yaml --no-wait
    """
    import os

    from stepflow.cli import remote
    from stepflow.cli.values import check_output, read_config, read_inputs, read_overrides, read_variables
    from stepflow.codec import Json, decode
    from stepflow.flow import Redactor
    from stepflow.ids import new_run_id

    check_output(output)
    parsed, reference = _flow(flow, server)
    retry = read_config(config, Path(flow) if flow.endswith(FILE_SUFFIXES) else None).retry
    given = read_inputs(InputOptions(input_file, input_json, input_yaml, inputs, stdin_format), parsed)
    patches = read_overrides(ValueOptions(overrides, overrides_json, overrides_yaml))
    values = VariableOptions(ValueOptions(variables, variables_json, variables_yaml), env_variables)
    supplied = read_variables(values, parsed, os.environ)
    chosen = run_id or new_run_id()

    async def begin(client: "Client") -> str:
        return await client.submit_batch(
            reference,
            [decode(value) for value in given.values],
            run_id=chosen,
            variables=supplied,
            overrides=patches,
            concurrency_max=max_concurrency,
            check_input=not no_validate_input,
            labels={"flow": flow, "batch": given.batch},
            retry=None if retry is None else retry.to_tree(),
        )

    if not wait:
        _tell_submitted(remote.ask(server, begin), server, json=json, quiet=quiet)
        return
    from stepflow.cli.display.follow import Following, follow
    from stepflow.cli.display.live import choose_view
    from stepflow.cli.display.outcome import finish

    redactor = Redactor(parsed, map(Json, given.values), supplied)
    following = Following(server, choose_view(redactor.text, quiet=quiet), cancels=True)

    async def begin_to_follow(client: "Client") -> tuple[str, int]:
        following.run_id = chosen  # from now on the mesh may have it
        await begin(client)
        console.say(f"run_id: {chosen}")
        return chosen, len(given.values)

    finish(follow(following, begin_to_follow), redactor, output, batch=given.batch, json=json)


def _flow(flow: str, server: str | None) -> "tuple[Flow, bytes | str]":
    """Return a flow, and what the server is given for it: the document of a file, or the name of a stored one."""
    if flow.endswith(FILE_SUFFIXES):
        from stepflow.cli.values import read_flow
        from stepflow.flow import flow_bytes

        parsed = read_flow(Path(flow))
        check_flow(parsed)
        return parsed, flow_bytes(parsed)
    from stepflow.cli import remote
    from stepflow.errors import NotFound
    from stepflow.flow import flow_from_tree

    try:
        flow_id, document = remote.ask(server, lambda client: client.get_flow(flow))
    except NotFound as error:
        raise NotFound(
            error.reason,
            f"{error.message}; `stepflow flows list` shows the stored ones, and a flow file ends in "
            f"{', '.join(FILE_SUFFIXES)}",
        ) from None
    return flow_from_tree(document), flow_id


def check_flow(flow: "Flow") -> None:
    """Stop when a flow cannot be right, with its diagnostics; tell of what was overlooked in its text."""
    from stepflow.cli.commands.validate import passes, print_report
    from stepflow.errors import Invalid
    from stepflow.flow import Diagnostics, validate_flow

    diagnostics = Diagnostics(flow.warnings) + validate_flow(flow)
    if not passes(diagnostics):
        print_report(diagnostics)
        raise Invalid("FLOW_INVALID", "the flow was not sent; the diagnostics above say why")
    for warning in flow.warnings:
        console.warn(f"{warning.path}: {warning.formatted}")


def _tell_submitted(run_id: str, server: str | None, *, json: bool, quiet: bool) -> None:
    from stepflow.cli import remote
    from stepflow.cli.tables import print_json

    if json:
        print_json({"run_id": run_id})
    else:
        console.out(f"{run_id}\n")
    if not quiet:
        console.say(f"follow it with: stepflow runs watch {run_id}{remote.server_argument(server)}")
