"""The check of a flow by a mesh: what its hosts offer, in the words of `stepflow run`.

- Findings of the flow alone are left out: the command has shown them with places in the file.
- The mesh refuses a submission with errors by itself. It is asked before for the whole list, and for the warnings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli.findings import refuse_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepflow.client import Client, FlowDiagnostic
    from stepflow.errors import Invalid
    from stepflow.flow import Diagnostic, Flow

_STANDS_FOR_UNKNOWN = 1900

REFUSAL = "the flow was not submitted; correct the errors listed above"


async def mesh_findings(
    client: Client, reference: bytes | str, flow: Flow, variables: Mapping[str, Any] | None, overrides: Any
) -> list[Diagnostic]:
    """Return what the mesh finds beyond the flow alone; nothing from a mesh of an earlier version.

    `reference`: the flow as the mesh knows it: its document, or its id. Raises: StepflowError.
    """
    from stepflow.flow import validate_flow

    known = {(item.code, item.path or "", item.formatted) for item in (*flow.warnings, *validate_flow(flow))}
    found = await client.validate_flow(reference, variables=variables, overrides=overrides)
    return [_diagnostic(item) for item in found if (item.code, item.path, item.message) not in known]


def show_warnings(found: list[Diagnostic]) -> None:
    """Print findings without errors. Errors are printed when the mesh refuses the submission."""
    if all(item.level == "warning" for item in found):
        refuse_errors(found, REFUSAL)


def show_refusal(error: Invalid, found: list[Diagnostic]) -> None:
    """Print the findings for which a mesh has refused a submission. Raises: Invalid, Usage; returns if it has none."""
    from stepflow.rpc.findings import finding_message

    details: Any = error.details.get("diagnostics")
    if not isinstance(details, dict):
        return
    if all(item.level == "warning" for item in found):  # the mesh has changed since, or tells no list
        from stepflow.client.conversion import diagnostic_of

        found = [_diagnostic(diagnostic_of(finding_message(tree))) for tree in details["diagnostics"]]
    refuse_errors(found, REFUSAL)


def _diagnostic(item: FlowDiagnostic) -> Diagnostic:
    """Return a finding as the renderer takes it. A code of a later version is shown by its text and level."""
    from stepflow.flow import Diagnostic
    from stepflow.flow.diagnostics import is_known

    level: Any = item.level if item.level in ("warning", "error", "fatal") else "error"
    code = item.code if is_known(item.code) else _STANDS_FOR_UNKNOWN
    return Diagnostic(code, item.message, item.path or None, item.data, severity=level)


__all__ = ["REFUSAL", "mesh_findings", "show_refusal", "show_warnings"]
