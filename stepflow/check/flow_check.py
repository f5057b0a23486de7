"""The whole check of a flow before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.check.components import ComponentCheck
from stepflow.check.variables import variable_findings
from stepflow.flow.diagnostics import Diagnostics
from stepflow.flow.silence import silence_of
from stepflow.flow.validate import bounded, validate_flow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stepflow.check.catalogue import Catalogue
    from stepflow.flow.diagnostics import Diagnostic
    from stepflow.flow.model import Flow
    from stepflow.flow.types import FlowTypes


def check_flow(
    flow: Flow, *, catalogue: Catalogue, variables: Mapping[str, Any] | None = None, overrides: Any = None
) -> Diagnostics:
    """Return all findings about a flow: of its text, of the flow alone, and of `check_against`.

    Raises: Invalid, the overrides cannot be applied.
    """
    alone = Diagnostics(flow.warnings) + validate_flow(flow)
    if alone.num_fatal:
        return alone
    return alone + check_against(flow, catalogue=catalogue, variables=variables, overrides=overrides)


def check_against(
    flow: Flow,
    *,
    catalogue: Catalogue,
    variables: Mapping[str, Any] | None = None,
    overrides: Any = None,
    with_types: bool = True,
) -> Diagnostics:
    """Return what the components and the values of a run tell about a flow without fatal findings.

    `variables`: the values of the run by name, None if they are not given yet. `with_types`: compare the types of
    inputs and paths with the schemas of components.

    Raises: Invalid, the overrides cannot be applied.
    """
    if overrides is not None:
        from stepflow.flow.overrides import apply_overrides

        flow = apply_overrides(flow, overrides)
    found = _each_once(_findings(flow, catalogue, variables, with_types=with_types))
    return Diagnostics(tuple(bounded(silence_of(flow).without_silenced(found))))


def including_types(found: Diagnostics, flow: Flow, types: FlowTypes, *, is_strict: bool) -> Diagnostics:
    """Return findings with those of all types of the flow. `is_strict` makes errors of the warnings."""
    # The types tell more exactly whether a path exists.
    others = Diagnostics(tuple(item for item in found if not item.experimental))
    every = others + tuple(silence_of(flow).without_silenced(types.findings))
    return every.strict() if is_strict else every


def _each_once(findings: Iterator[Diagnostic]) -> Iterator[Diagnostic]:
    """Leave out repetitions: several steps may run one stored flow."""
    told: set[tuple[int, str | None, str]] = set()
    for finding in findings:
        key = (finding.code, finding.path, finding.formatted)
        if key not in told:
            told.add(key)
            yield finding


def _findings(
    flow: Flow, catalogue: Catalogue, variables: Mapping[str, Any] | None, *, with_types: bool
) -> Iterator[Diagnostic]:
    components = ComponentCheck(catalogue)
    told: set[tuple[str, str]] = set()
    for finding in components.findings(flow):
        if "meant" in finding.data and finding.path is not None:
            told.add((finding.path.rpartition(".")[0], finding.data["meant"]))
        yield finding
    if variables is not None:
        yield from variable_findings(flow, variables)

    if with_types and (components.has_schemas or flow.schemas):
        from stepflow.flow.types import analyse_flow

        for finding in analyse_flow(flow, catalogue.schemas, certain_only=True).findings:
            # A misspelt member is told, and need not be told as missing.
            if (finding.path or "", finding.data.get("missing", "")) not in told:
                yield finding
