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
DEFAULT_FOLDER = Path(".stepflow")
DEV_FOLDER = DEFAULT_FOLDER / "dev"
"""The folder of `stepflow dev`, unless `--data` names another."""

RUN_HELP = "An id, its end (4 characters or more), a unique beginning of it, or `last`."
VALUE_HELP = 'JSON text (it begins with {, [ or "), - for stdin, else a YAML or JSON file.'

FlowOption = Annotated[
    str,
    typer.Argument(
        metavar="FLOW",
        help="A file, - for stdin, or a stored flow: NAME[@TAG|@3] or an id.",
    ),
]
"""For commands under `with_flow`, which also accept the former `--flow` and `-f`."""
FlowsOption = Annotated[
    list[str],
    typer.Argument(
        metavar="FLOW...",
        help="Files, - for stdin, or stored flows: NAME[@TAG|@3] or an id.",
    ),
]
"""For commands under `with_flows`, which also accept the former `--flow` and `-f` for one flow."""
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
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the steps.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="File of the result, YAML or JSON. Default: stdout, JSON."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def _apply_env_file(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is not None and not ctx.resilient_parsing:
        from stepflow.cli.env_file import apply_env_file

        apply_env_file(path)
    return path


EnvFileOption = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="Environment variables from a .env file; those that are set already win.",
        callback=_apply_env_file,
        is_eager=True,  # before the options that take their value from the environment
    ),
]

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Folder of the runs. Default: STEPFLOW_STORE, else .stepflow."),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar="STEPFLOW_SERVER",
        show_envvar=False,
        help=f"The mesh. Default: STEPFLOW_SERVER, else a `stepflow dev` of this folder, else {DEFAULT_SERVER}.",
    ),
]
TargetServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar="STEPFLOW_SERVER",
        show_envvar=False,
        help="Runs of this mesh. Default: STEPFLOW_SERVER, STEPFLOW_STORE, a `stepflow dev` of this folder, .stepflow.",
    ),
]
TargetStoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Runs of this folder, instead of a mesh.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]
RunArguments = Annotated[list[str], typer.Argument(metavar="RUN...", help=RUN_HELP)]


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The options of the input; at most one of the first four is set. `value` is a VALUE."""

    value: str | None = None
    json: str | None = None
    yaml: str | None = None
    lines: Path | None = None
    stdin_format: str = "json"


@dataclass(frozen=True, slots=True)
class ValueOptions:
    """The options of one value (variables, overrides, a payload); at most one is set. `value` is a VALUE."""

    value: str | None = None
    json: str | None = None
    yaml: str | None = None
    pairs: tuple[str, ...] = ()
    """Texts `NAME=VALUE`, which count over the value."""


@dataclass(frozen=True, slots=True)
class VariableOptions:
    """The options of the variables."""

    given: ValueOptions = field(default_factory=ValueOptions)
    from_environment: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of both `run` and `submit` for inputs, variables and overrides, in the order of the help."""

    input: Annotated[str | None, typer.Option("--input", metavar="VALUE", help=f"The input: {VALUE_HELP}")] = None
    input_json: Annotated[str | None, typer.Option("--input-json", hidden=True)] = None
    input_yaml: Annotated[str | None, typer.Option("--input-yaml", hidden=True)] = None
    input_lines: Annotated[
        Path | None, typer.Option("--inputs", metavar="FILE", help="A batch: one JSON input per line (JSONL).")
    ] = None
    stdin_format: Annotated[
        str, typer.Option("--stdin-format", metavar="json|yaml", help="Format of an input on stdin.")
    ] = "json"
    unordered: Annotated[
        bool, typer.Option("--unordered", help="Results of a batch as they come, each with its `item`.")
    ] = False

    var: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="K=V", help="The value of a variable, JSON or text (repeatable)."),
    ] = None
    variables: Annotated[
        str | None, typer.Option("--var-file", metavar="FILE", help="Values of variables, a YAML or JSON file.")
    ] = None
    variables_json: Annotated[str | None, typer.Option("--variables-json", hidden=True)] = None
    variables_yaml: Annotated[str | None, typer.Option("--variables-yaml", hidden=True)] = None
    env_variables: Annotated[
        bool,
        typer.Option(
            "--env-variables", help="Take declared variables from the environment (env_var or STEPFLOW_VAR_NAME)."
        ),
    ] = False

    env_file: EnvFileOption = None

    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STEP.PATH=VALUE", help="A change to a step, JSON or text (repeatable)."),
    ] = None
    overrides: Annotated[
        str | None, typer.Option("--set-file", metavar="FILE", help="Changes to steps, a YAML or JSON file.")
    ] = None
    overrides_json: Annotated[str | None, typer.Option("--overrides-json", hidden=True)] = None
    overrides_yaml: Annotated[str | None, typer.Option("--overrides-yaml", hidden=True)] = None

    @property
    def values(self) -> tuple[str | None, ...]:
        """The VALUEs, each of which may be stdin."""
        return self.input, self.variables, self.overrides

    @property
    def of_input(self) -> InputOptions:
        return InputOptions(self.input, self.input_json, self.input_yaml, self.input_lines, self.stdin_format)

    @property
    def of_variables(self) -> VariableOptions:
        given = ValueOptions(self.variables, self.variables_json, self.variables_yaml, tuple(self.var or ()))
        return VariableOptions(given, self.env_variables)

    @property
    def of_overrides(self) -> ValueOptions:
        return ValueOptions(self.overrides, self.overrides_json, self.overrides_yaml, tuple(self.set or ()))


OLD_WORDS = {
    "--key": "--run-id",
    "--no-check": "--no-validate-input",
    "--tag": "--label",
    "--var-file": "--variables",
    "--set-file": "--overrides",
}
"""Option → its former name, which goes on working and is not in the help."""


def with_flow(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command with the parameter `flow: FlowOption` also accept the former options `--flow` and `-f`."""

    @functools.wraps(command)
    def expanded(flow: str | None, flow_option: str | None, **arguments: Any) -> None:
        command(flow=_one_flow(flow, flow_option), **arguments)

    return _with_former_flow(expanded, command, "flow")


def with_flows(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command with the parameter `flows: FlowsOption` also accept the former options for one flow."""

    @functools.wraps(command)
    def expanded(flows: list[str] | None, flow_option: str | None, **arguments: Any) -> None:
        first = _one_flow(flows[0] if flows else None, flow_option)
        command(flows=flows or [first], **arguments)

    return _with_former_flow(expanded, command, "flows")


def _with_former_flow(expanded: Callable[..., None], command: Callable[..., None], name: str) -> Callable[..., None]:
    """Give the signature of a command, with an argument that may be left out and the option instead of it."""
    signature = inspect.signature(command)
    argument = signature.parameters[name].replace(kind=inspect.Parameter.KEYWORD_ONLY, default=None)
    option = inspect.Parameter(
        "flow_option",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, typer.Option("--flow", "-f", hidden=True)],
    )
    others = [each for each in signature.parameters.values() if each.name != name]
    return _with_parameters(expanded, signature, [argument, option, *others])


def _one_flow(flow: str | None, option: str | None) -> str:
    """Return the flow that is named once. Raises: Usage."""
    from stepflow.cli.console import Usage

    if flow is not None and option is not None:
        raise Usage("OPTIONS_EXCLUSIVE", "the flow is named twice: as an argument and with --flow")
    found = option if flow is None else flow
    if found is None:
        raise Usage("FLOW_MISSING", "name a flow: a file, - for stdin, or a stored flow (NAME[@TAG|@3] or an id)")
    return found


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

    return _with_parameters(expanded, signature, parameters)


def _with_parameters(
    command: Callable[..., None], signature: inspect.Signature, parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """Give a command the signature that typer reads."""
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = signature.replace(parameters=keyword_only)  # type: ignore[attr-defined]  # read by inspect
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword_only}
    return command
