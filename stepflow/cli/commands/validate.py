"""`stepflow validate`: check a flow and its config without running anything."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.options import ConfigOption, FlowOption, JsonOption, with_flow

if TYPE_CHECKING:
    from stepflow.config import Config
    from stepflow.errors import StepflowError
    from stepflow.flow import Diagnostics, Flow
    from stepflow.flow.types import FlowTypes

_LEVELS = (("fatal", "red"), ("error", "red"), ("warning", "yellow"))


@with_flow
def validate(
    flow: FlowOption,
    config: ConfigOption = None,
    type_check: Annotated[
        bool, typer.Option("--type-check", help="Also check the types of all inputs, paths and outputs.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Report what cannot be checked; warnings are errors.")
    ] = False,
    servers: Annotated[
        bool, typer.Option("--servers", help="Start the servers of the config to ask for their schemas.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check a flow and its config without running anything.

    The exit code is 1 when a diagnostic is fatal or an error; warnings do not count, except with --strict. A warning is
    silenced by its code under `metadata.ignoreWarnings` of the flow or of the step.

    \b
    Examples:
      stepflow validate flow.yaml
      stepflow validate flow.yaml --config stepflow-config.yml
      stepflow validate flow.yaml --type-check --servers
      stepflow validate flow.yaml --type-check --strict
      stepflow validate flow.yaml --json | jq .numWarning
    """
    from stepflow.cli.found_flow import find_flow
    from stepflow.cli.input.documents import read_config

    found = find_flow(flow)
    parsed, loaded = found.flow, read_config(config, found.path)
    diagnostics = check(parsed, loaded)
    failures: list[StepflowError] = []
    if type_check or servers:
        from stepflow.cli.flow_types import types_of

        types, failures = types_of(parsed, loaded, servers=servers, is_strict=strict)
        diagnostics = complete(diagnostics, parsed, types, is_strict=strict)
    elif strict:
        diagnostics = diagnostics.strict()
    for warning in loaded.warnings:
        console.warn(warning)
    if json:
        import msgspec

        console.out(msgspec.json.format(msgspec.json.encode(diagnostics.to_tree()), indent=2) + b"\n")
    else:
        print_report(diagnostics)
    for failure in failures:
        console.error(failure)
    raise typer.Exit(console.EXIT_OK if passes(diagnostics) and not failures else console.EXIT_FAILED)


def check(flow: "Flow", config: "Config") -> "Diagnostics":
    """Return the diagnostics of a flow (its text, then its meaning) and of its config."""
    from stepflow.flow import Diagnostics, validate_config, validate_flow

    routes = {prefix: [rule.plugin for rule in rules] for prefix, rules in config.routes.items()}
    return Diagnostics(flow.warnings) + validate_flow(flow) + validate_config(config.plugins, routes)


def complete(diagnostics: "Diagnostics", flow: "Flow", types: "FlowTypes", *, is_strict: bool) -> "Diagnostics":
    """Return the diagnostics of a flow with those of its types. `is_strict` makes errors of the warnings."""
    from stepflow.flow import Diagnostics
    from stepflow.flow.silence import silence_of

    # The types tell more exactly whether a path exists.
    others = Diagnostics(tuple(item for item in diagnostics if not item.experimental))
    found = others + tuple(silence_of(flow).without_silenced(types.findings))
    return found.strict() if is_strict else found


def passes(diagnostics: "Diagnostics") -> bool:
    """Return True if a flow with these diagnostics may run."""
    return diagnostics.num_fatal + diagnostics.num_error == 0


def print_report(diagnostics: "Diagnostics") -> None:
    """Print diagnostics to stderr, the worst first.

    Experimental warnings are left out: each path into a result has one, and `--type-check` tells more. `--json` has
    them.
    """
    from stepflow.flow import Diagnostics

    diagnostics = Diagnostics(tuple(item for item in diagnostics if not item.experimental or item.level != "warning"))
    found: list[dict[str, Any]] = diagnostics.to_tree()["diagnostics"]
    if not found:
        console.say(console.styled("✅ Validation passed with no errors", "green"))
        return
    errors, warnings = diagnostics.num_error, diagnostics.num_warning
    counts = f"{diagnostics.num_fatal} fatal, {_count(errors, 'error')}, {_count(warnings, 'warning')}"
    console.say(f"Validation {'passed' if passes(diagnostics) else 'failed'}: {counts}")

    for level, colour in _LEVELS:
        for diagnostic in found:
            if diagnostic["level"] == level:
                path = f" ({diagnostic['path']})" if diagnostic.get("path") else ""
                console.say(f"  {console.styled(level.upper(), colour)} {diagnostic['formatted']}{path}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
