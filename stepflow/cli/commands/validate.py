"""`stepflow validate`: check a flow and its config without running anything."""

from typing import TYPE_CHECKING, Annotated

import typer

from stepflow.cli import console
from stepflow.cli.options import ConfigOption, FlowOption, JsonOption, with_flow

if TYPE_CHECKING:
    from stepflow.errors import StepflowError
    from stepflow.flow import Diagnostics


@with_flow
def validate(
    flow: FlowOption,
    config: ConfigOption = None,
    type_check: Annotated[
        bool, typer.Option("--type-check", help="Also report types that fit only sometimes, and the declared output.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Report what cannot be checked; warnings are errors.")
    ] = False,
    servers: Annotated[
        bool, typer.Option("--servers", help="Start the servers of the config to ask for their components.")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="HOST:PORT", help="Check with the components of this mesh, not of a config."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check a flow and its config without running anything.

    The exit code is 1 when a diagnostic is fatal or an error; warnings do not count, except with --strict. A warning is
    silenced by its code under `metadata.ignoreWarnings` of the flow or of the step.

    \b
    Examples:
      stepflow validate flow.yaml
      stepflow validate flow.yaml --config stepflow-config.yml
      stepflow validate flow.yaml --servers
      stepflow validate flow.yaml --type-check --strict
      stepflow validate flow.yaml --server mesh:7840
      stepflow validate flow.yaml --json | jq .numWarning
    """
    from stepflow.cli.findings import check, complete, passes
    from stepflow.cli.found_flow import find_flow
    from stepflow.cli.input.documents import read_config

    found = find_flow(flow, server)
    parsed = found.flow
    if server is not None:
        if servers or config is not None:
            raise console.Usage("OPTION_INVALID", "--server excludes --servers and --config: a mesh has its own")
        from stepflow.cli.mesh_check import mesh_diagnostics

        diagnostics = mesh_diagnostics(server, parsed, type_check=type_check, is_strict=strict)
        _print(diagnostics, json=json)
        raise typer.Exit(console.EXIT_OK if passes(diagnostics) else console.EXIT_FAILED)

    loaded = read_config(config, found.path)
    diagnostics = check(parsed, loaded)
    failures: list[StepflowError] = []
    if not diagnostics.num_fatal:
        from stepflow.check import check_against
        from stepflow.cli.flow_types import known_catalogue, types_of

        catalogue, failures = known_catalogue(loaded, servers=servers)
        diagnostics += check_against(parsed, catalogue=catalogue, with_types=not type_check)
        if type_check:
            diagnostics = complete(diagnostics, parsed, types_of(parsed, catalogue, is_strict=strict), is_strict=strict)
    if strict and not type_check:
        diagnostics = diagnostics.strict()
    for warning in loaded.warnings:
        console.warn(warning)
    _print(diagnostics, json=json, complete=not failures)
    for failure in failures:
        console.error(failure)
    raise typer.Exit(console.EXIT_OK if passes(diagnostics) and not failures else console.EXIT_FAILED)


def _print(diagnostics: "Diagnostics", *, json: bool, complete: bool = True) -> None:
    from stepflow.cli.findings import print_report
    from stepflow.cli.tables import print_json

    if json:
        print_json(diagnostics.to_tree())
    else:
        print_report(diagnostics, complete=complete)
