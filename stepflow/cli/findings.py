"""The findings about a flow: collected for the commands, and printed in the same words by all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli import console

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stepflow.config import Config
    from stepflow.flow import Diagnostic, Diagnostics, Flow
    from stepflow.flow.types import FlowTypes

WARNINGS_SHOWN_MAX = 10

_LEVELS = (("fatal", "red"), ("error", "red"), ("warning", "yellow"))

UNTITLED = frozenset((1001, 1002))
"""Codes of a flow without a name or a description."""

_OF_VALUES = frozenset((2904, 2905))
"""Codes about the values that a command gives."""


def check(flow: Flow, config: Config) -> Diagnostics:
    """Return the diagnostics of a flow (its text, then its meaning) and of its config."""
    from stepflow.flow import Diagnostics, validate_config, validate_flow

    routes = {prefix: [rule.plugin for rule in rules] for prefix, rules in config.routes.items()}
    return Diagnostics(flow.warnings) + validate_flow(flow) + validate_config(config.plugins, routes)


def complete(diagnostics: Diagnostics, flow: Flow, types: FlowTypes, *, is_strict: bool) -> Diagnostics:
    """Return the diagnostics of a flow with those of its types. `is_strict` makes errors of the warnings."""
    from stepflow.flow import Diagnostics
    from stepflow.flow.silence import silence_of

    # The types tell more exactly whether a path exists.
    others = Diagnostics(tuple(item for item in diagnostics if not item.experimental))
    found = others + tuple(silence_of(flow).without_silenced(types.findings))
    return found.strict() if is_strict else found


def passes(diagnostics: Diagnostics) -> bool:
    """Return True if a flow with these diagnostics may run."""
    return diagnostics.num_fatal + diagnostics.num_error == 0


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
    verdict = "failed" if not passes(diagnostics) else "passed" if complete else "incomplete"
    console.say(f"Validation {verdict}: {counts}")

    for level, colour in _LEVELS:
        for diagnostic in found:
            if diagnostic["level"] == level:
                path = f" ({diagnostic['path']})" if diagnostic.get("path") else ""
                console.say(f"  {console.styled(level.upper(), colour)} {diagnostic['formatted']}{path}")


def refuse_errors(found: Sequence[Diagnostic], refusal: str, *, before: Iterable[Diagnostic] = ()) -> None:
    """Print findings: as warnings, or as a report with those of `before` if one is an error.

    Raises, with the text `refusal`: Usage `VARIABLES_INVALID`, all errors are about values; Invalid `FLOW_INVALID`.
    """
    from stepflow.errors import Invalid
    from stepflow.flow import Diagnostics

    errors = [item for item in found if item.level != "warning"]
    if errors:
        print_report(Diagnostics((*before, *found)))
        if all(item.code in _OF_VALUES for item in errors):
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
