"""`stepflow validate`: check flows and their configs without running anything."""

from typing import TYPE_CHECKING, Annotated

import typer

from stepflow.cli import console
from stepflow.cli.options import ConfigOption, FlowsOption, JsonOption, with_flows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.cli.validation import FlowReport


@with_flows
def validate(
    *,
    flows: FlowsOption,
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no report about a flow that passes.")] = False,
) -> None:
    """Check flows and their configs without running anything.

    The exit code is 1 when a diagnostic of a flow is fatal or an error; warnings do not count, except with --strict. A
    warning is silenced by its code under `metadata.ignoreWarnings` of the flow or of the step.

    With --json, one flow has one report, and several have a list of reports, each with the FLOW that it is about.

    \b
    Examples:
      stepflow validate flow.yaml
      stepflow validate flow.yaml --config stepflow-config.yml
      stepflow validate flow.yaml --servers
      stepflow validate flows/*.yaml --type-check --strict -q
      stepflow validate flow.yaml --server mesh:7840
      stepflow validate flow.yaml --json | jq .numWarning
    """
    from stepflow.cli.validation import FlowReport, FlowValidator, ValidateOptions, find_flows

    if server is not None and (servers or config is not None):
        raise console.Usage("OPTION_INVALID", "--server excludes --servers and --config: a mesh has its own")
    validator = FlowValidator(ValidateOptions(config, server, type_check, strict, servers))

    reports: list[FlowReport] = []
    for found in find_flows(flows, server):
        report = found if isinstance(found, FlowReport) else validator.report(found)
        reports.append(report)
        if len(flows) == 1 and report.error is not None:
            raise report.error
        _print(report, several=len(flows) > 1, json=json, quiet=quiet)

    passed = sum(report.passed for report in reports)
    if len(flows) > 1 and not quiet:
        console.say(f"{len(flows)} flows: {passed} passed, {len(flows) - passed} failed")
    if json:
        _print_json(reports)
    raise typer.Exit(console.EXIT_OK if passed == len(flows) else console.EXIT_FAILED)


def _print(report: "FlowReport", *, several: bool, json: bool, quiet: bool) -> None:
    """Print what a person reads of a report, on stderr."""
    if quiet and report.passed:
        return
    if several and (not json or report.error is not None or report.failures):
        console.say(console.styled(f"=== {report.text} ===", "bold"))
    report.print(reports=not json)


def _print_json(reports: "Sequence[FlowReport]") -> None:
    from stepflow.cli.tables import print_json

    if len(reports) == 1 and reports[0].diagnostics is not None:
        print_json(reports[0].diagnostics.to_tree())
    else:
        print_json([report.to_tree() for report in reports])
