"""The findings about a flow: collected for the commands, and printed in the same words by all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli import console

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stepflow.config import Config
    from stepflow.flow import Diagnostic, Diagnostics, Flow

WARNINGS_SHOWN_MAX = 10

_LEVELS = (("fatal", "red"), ("error", "red"), ("warning", "yellow"))

UNTITLED = frozenset((1001, 1002))
"""Codes of a flow without a name or a description."""


def check(flow: Flow, config: Config) -> Diagnostics:
    """Return the diagnostics of a flow (its text, then its meaning) and of its config."""
    from stepflow.flow import Diagnostics, validate_config, validate_flow

    routes = {prefix: [rule.plugin for rule in rules] for prefix, rules in config.routes.items()}
    return Diagnostics(flow.warnings) + validate_flow(flow) + validate_config(config.plugins, routes)


def distinct(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Return the findings without those that read the same: a variable that is used twice is one finding."""
    return list({(item.code, item.path, item.formatted): item for item in reversed([*diagnostics])}.values())[::-1]


def print_report(diagnostics: Diagnostics, *, complete: bool = True) -> None:
    """Print diagnostics to stderr, the worst first. If they are not `complete`, the flow has not passed yet.

    Experimental warnings are left out: each path into a result has one, and `--type-check` tells more. `--json` has
    them.
    """
    from stepflow.flow import Diagnostics

    told = distinct(item for item in diagnostics if not item.experimental or item.level != "warning")
    diagnostics = Diagnostics(tuple(told))
    found: list[dict[str, Any]] = diagnostics.to_tree()["diagnostics"]
    if not found and not complete:
        return
    if not found:
        console.say(console.styled("✅ Validation passed with no errors", "green"))
        return
    errors, warnings = diagnostics.num_error, diagnostics.num_warning
    counts = f"{diagnostics.num_fatal} fatal, {counted(errors, 'error')}, {counted(warnings, 'warning')}"
    verdict = "failed" if diagnostics.blocks else "passed" if complete else "incomplete"
    console.say(f"Validation {verdict}: {counts}")

    for level, colour in _LEVELS:
        for diagnostic in found:
            if diagnostic["level"] == level:
                path = f" ({diagnostic['path']})" if diagnostic.get("path") else ""
                console.say(f"  {console.styled(level.upper(), colour)} {diagnostic['formatted']}{path}")


def check_flow(flow: Flow, *, no_check: bool = False) -> None:
    """Refuse a flow with errors; show the warnings of its text. `no_check`: refuse only fatal findings.

    Raises: Invalid `FLOW_INVALID`, after the diagnostics were printed.
    """
    from stepflow.errors import Invalid
    from stepflow.flow import Diagnostics, validate_flow

    diagnostics = Diagnostics(flow.warnings) + validate_flow(flow)
    if diagnostics.num_fatal or (diagnostics.blocks and not no_check):
        print_report(diagnostics)
        raise Invalid("FLOW_INVALID", "the flow was not sent; correct the errors listed above")
    for warning in flow.warnings:
        console.warn(f"{warning.path}: {warning.formatted}")


def refuse_errors(found: Sequence[Diagnostic], refusal: str, *, before: Iterable[Diagnostic] = ()) -> None:
    """Print findings: as warnings, or as a report with those of `before` if one is an error.

    Raises, with the text `refusal`: Usage `VARIABLES_INVALID`, all errors are about values; Invalid `FLOW_INVALID`.
    """
    from stepflow.errors import Invalid
    from stepflow.flow import Diagnostics
    from stepflow.flow.diagnostics import OF_VALUES

    errors = [item for item in found if item.level != "warning"]
    if errors:
        print_report(Diagnostics((*before, *found)))
        if all(item.code in OF_VALUES for item in errors):
            raise console.Usage("VARIABLES_INVALID", refusal)
        raise Invalid("FLOW_INVALID", refusal)

    for item in found[:WARNINGS_SHOWN_MAX]:
        console.warn(item.formatted + (f" ({item.path})" if item.path else ""))
    if len(found) > WARNINGS_SHOWN_MAX:
        more = counted(len(found) - WARNINGS_SHOWN_MAX, "more warning")
        console.say(console.styled(more, "dim"))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 warning`, `2 warnings`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
