"""Options that several commands share: flow, config, input, variables, overrides, output.

Each group is a set of `Annotated` types for a command's signature and a small dataclass that holds what was given;
`values` reads it. This module is imported by every command, also for its help, and so imports nothing but typer.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

FlowOption = Annotated[Path, typer.Option("--flow", "-f", metavar="FILE", help="The flow, YAML or JSON.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Plugins and routes. Default: stepflow-config.yml beside the flow, or here."
    ),
]
InputOption = Annotated[Path | None, typer.Option("--input", metavar="FILE", help="The input, YAML or JSON.")]
InputJsonOption = Annotated[str | None, typer.Option("--input-json", metavar="JSON", help="The input as JSON text.")]
InputYamlOption = Annotated[str | None, typer.Option("--input-yaml", metavar="YAML", help="The input as YAML text.")]
InputsOption = Annotated[
    Path | None, typer.Option("--inputs", metavar="FILE", help="A batch: one JSON input per line (JSONL).")
]
StdinFormatOption = Annotated[
    str, typer.Option("--stdin-format", metavar="json|yaml", help="Format of an input that is piped in.")
]
VariablesOption = Annotated[
    Path | None, typer.Option("--variables", metavar="FILE", help="Values of variables, YAML or JSON.")
]
VariablesJsonOption = Annotated[
    str | None, typer.Option("--variables-json", metavar="JSON", help="Values of variables as JSON text.")
]
VariablesYamlOption = Annotated[
    str | None, typer.Option("--variables-yaml", metavar="YAML", help="Values of variables as YAML text.")
]
EnvVariablesOption = Annotated[
    bool,
    typer.Option(
        "--env-variables", help="Take declared variables from the environment (env_var or STEPFLOW_VAR_NAME)."
    ),
]
OverridesOption = Annotated[
    Path | None, typer.Option("--overrides", metavar="FILE", help="Changes to steps, YAML or JSON.")
]
OverridesJsonOption = Annotated[
    str | None, typer.Option("--overrides-json", metavar="JSON", help="Changes to steps as JSON text.")
]
OverridesYamlOption = Annotated[
    str | None, typer.Option("--overrides-yaml", metavar="YAML", help="Changes to steps as YAML text.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where the result goes, YAML or JSON. Default: stdout, JSON."),
]


@dataclass(frozen=True, slots=True)
class InputOptions:
    """How the input was given; at most one of the first four."""

    file: Path | None = None
    json: str | None = None
    yaml: str | None = None
    lines: Path | None = None
    stdin_format: str = "json"


@dataclass(frozen=True, slots=True)
class ValueOptions:
    """How one value (variables, overrides) was given; at most one of the three."""

    file: Path | None = None
    json: str | None = None
    yaml: str | None = None


@dataclass(frozen=True, slots=True)
class VariableOptions:
    """How variables were given."""

    given: ValueOptions = field(default_factory=ValueOptions)
    from_environment: bool = False
