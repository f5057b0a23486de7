"""Shared options: flow, config, input, variables, overrides, output, run, mesh.

- An option is an `Annotated` type for the signature of a command.
- The options of both `run` and `submit` are declared once, as the fields of `RunOptions`; `with_run_options` puts the
  options into the signature for typer.
- `stepflow.cli.input` reads the files and texts.

Every command imports this module, also for the help: the only import is typer.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_SERVER = "localhost:7840"

FlowOption = Annotated[Path, typer.Option("--flow", "-f", metavar="FILE", help="The flow, YAML or JSON.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Plugins and routes. Default: stepflow-config.yml next to the flow, or in the working directory.",
    ),
]
MaxConcurrencyOption = Annotated[
    int | None, typer.Option("--max-concurrency", min=1, metavar="N", help="Steps in flight at once. Default: 10.")
]
NoCheckOption = Annotated[
    bool, typer.Option("--no-check", help="Do not check components, variables, types and input before the run.")
]
NoValidateInputOption = Annotated[
    bool, typer.Option("--no-validate-input", hidden=True, help="Old name of --no-check.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the steps.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="File of the result, YAML or JSON. Default: stdout, JSON."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Folder of the runs. Default: .stepflow in the working directory."),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar="STEPFLOW_SERVER",
        show_envvar=False,
        help=f"The mesh. Default: STEPFLOW_SERVER, else {DEFAULT_SERVER}.",
    ),
]
LocalOrServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar="STEPFLOW_SERVER",
        show_envvar=False,
        help="Ask this mesh instead of the local store. Default: STEPFLOW_SERVER.",
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run, or a prefix of its id.")]
RunArguments = Annotated[list[str], typer.Argument(metavar="RUN_ID...", help="The runs, or prefixes of their ids.")]


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The options of the input; at most one of the first four is set."""

    file: Path | None = None
    json: str | None = None
    yaml: str | None = None
    lines: Path | None = None
    stdin_format: str = "json"


@dataclass(frozen=True, slots=True)
class ValueOptions:
    """The options of one value (variables, overrides, a payload); at most one is set."""

    file: Path | None = None
    json: str | None = None
    yaml: str | None = None


@dataclass(frozen=True, slots=True)
class VariableOptions:
    """The options of the variables."""

    given: ValueOptions = field(default_factory=ValueOptions)
    from_environment: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of both `run` and `submit` for inputs, variables and overrides, in the order of the help."""

    input_file: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="The input, a YAML or JSON file.")
    ] = None
    input_json: Annotated[str | None, typer.Option("--input-json", metavar="JSON", help="The input as JSON text.")] = (
        None
    )
    input_yaml: Annotated[str | None, typer.Option("--input-yaml", metavar="YAML", help="The input as YAML text.")] = (
        None
    )
    input_lines: Annotated[
        Path | None, typer.Option("--inputs", metavar="FILE", help="A batch: one JSON input per line (JSONL).")
    ] = None
    stdin_format: Annotated[
        str, typer.Option("--stdin-format", metavar="json|yaml", help="Format of an input on stdin.")
    ] = "json"

    variables_file: Annotated[
        Path | None, typer.Option("--variables", metavar="FILE", help="Values of variables, a YAML or JSON file.")
    ] = None
    variables_json: Annotated[
        str | None, typer.Option("--variables-json", metavar="JSON", help="Values of variables as JSON text.")
    ] = None
    variables_yaml: Annotated[
        str | None, typer.Option("--variables-yaml", metavar="YAML", help="Values of variables as YAML text.")
    ] = None
    env_variables: Annotated[
        bool,
        typer.Option(
            "--env-variables", help="Take declared variables from the environment (env_var or STEPFLOW_VAR_NAME)."
        ),
    ] = False

    overrides_file: Annotated[
        Path | None, typer.Option("--overrides", metavar="FILE", help="Changes to steps, a YAML or JSON file.")
    ] = None
    overrides_json: Annotated[
        str | None, typer.Option("--overrides-json", metavar="JSON", help="Changes to steps as JSON text.")
    ] = None
    overrides_yaml: Annotated[
        str | None, typer.Option("--overrides-yaml", metavar="YAML", help="Changes to steps as YAML text.")
    ] = None

    @property
    def inputs(self) -> InputOptions:
        return InputOptions(self.input_file, self.input_json, self.input_yaml, self.input_lines, self.stdin_format)

    @property
    def variables(self) -> VariableOptions:
        files = ValueOptions(self.variables_file, self.variables_json, self.variables_yaml)
        return VariableOptions(files, self.env_variables)

    @property
    def overrides(self) -> ValueOptions:
        return ValueOptions(self.overrides_file, self.overrides_json, self.overrides_yaml)


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `given: RunOptions` of a command by one option per field of RunOptions.

    The options take the position of the parameter in the help; the command gets a `RunOptions`.
    """
    members = fields(RunOptions)

    @functools.wraps(command)
    def expanded(**arguments: Any) -> None:
        given = RunOptions(**{member.name: arguments.pop(member.name) for member in members})
        command(given=given, **arguments)

    signature = inspect.signature(command)
    options = [
        inspect.Parameter(member.name, inspect.Parameter.KEYWORD_ONLY, default=member.default, annotation=member.type)
        for member in members
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += options if parameter.name == "given" else [parameter]

    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded
