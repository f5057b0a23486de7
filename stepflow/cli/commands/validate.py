"""`stepflow validate`: check a flow and its config without running anything."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepflow.cli import console
from stepflow.cli.options import ConfigOption, FlowOption

if TYPE_CHECKING:
    from stepflow.config import Config
    from stepflow.flow import Diagnostics, Flow

_LEVELS = (("fatal", "red"), ("error", "red"), ("warning", "yellow"))


def validate(
    flow: FlowOption,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the diagnostics as JSON on stdout.")] = False,
) -> None:
    """Check a flow and its config without running anything.

    The exit code is 1 when a diagnostic is fatal or an error; warnings do not count.

    \b
    Examples:
      stepflow validate --flow flow.yaml
      stepflow validate --flow flow.yaml --config stepflow-config.yml
      stepflow validate --flow flow.yaml --json | jq .numWarning
    """
    from stepflow.cli.input.documents import read_config, read_flow

    parsed, loaded = read_flow(flow), read_config(config, flow)
    diagnostics = check(parsed, loaded)
    for warning in loaded.warnings:
        console.warn(warning)
    if json:
        import msgspec

        console.out(msgspec.json.format(msgspec.json.encode(diagnostics.to_tree()), indent=2) + b"\n")
    else:
        print_report(diagnostics)
    raise typer.Exit(console.EXIT_OK if passes(diagnostics) else console.EXIT_FAILED)


def check(flow: "Flow", config: "Config") -> "Diagnostics":
    """Return the diagnostics of a flow (its text, then its meaning) and of its config."""
    from stepflow.flow import Diagnostics, validate_config, validate_flow

    routes = {prefix: [rule.plugin for rule in rules] for prefix, rules in config.routes.items()}
    return Diagnostics(flow.warnings) + validate_flow(flow) + validate_config(config.plugins, routes)


def passes(diagnostics: "Diagnostics") -> bool:
    """Return True if a flow with these diagnostics may run."""
    return diagnostics.num_fatal + diagnostics.num_error == 0


def print_report(diagnostics: "Diagnostics") -> None:
    """Print diagnostics to stderr, the worst first."""
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
