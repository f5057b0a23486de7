"""The check of a flow by a mesh: what its hosts offer, in the words of `stepflow run`.

- Findings of the flow alone are left out: the command has shown them with places in the file.
- The mesh refuses a submission with errors by itself. It is asked before for the whole list, and for the warnings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli.findings import passes, refuse_errors
from stepflow.flow import Diagnostic, Diagnostics, validate_flow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepflow.client import Client, FlowDiagnostic
    from stepflow.errors import Invalid
    from stepflow.flow import Flow

_STANDS_FOR_UNKNOWN = 1900

REFUSAL = "the flow was not submitted; correct the errors listed above"


class MeshCheck:
    """The check of one submission."""

    def __init__(self, flow: Flow) -> None:
        self._alone = Diagnostics(flow.warnings) + validate_flow(flow)
        """Findings of the flow alone: a command has shown their errors, and they lead a report."""
        self._found: list[Diagnostic] = []

    async def ask(
        self, client: Client, reference: bytes | str, variables: Mapping[str, Any] | None, overrides: Any
    ) -> None:
        """Ask for what the mesh finds beyond the flow alone, and print it if these are warnings.

        `reference`: the flow as the mesh knows it: its document, or its id. A mesh of an earlier version finds nothing.
        Raises: StepflowError.
        """
        known = {(item.code, item.path or "", item.formatted) for item in self._alone}
        found = await client.validate_flow(reference, variables=variables, overrides=overrides)
        self._found = [_diagnostic(item) for item in found if (item.code, item.path, item.message) not in known]

        # Errors are printed when the mesh has refused the submission: a repeated one gets its run.
        if passes(self.findings):
            refuse_errors(self._found, REFUSAL)

    @property
    def findings(self) -> Diagnostics:
        """What the mesh finds beyond the flow alone."""
        return Diagnostics(tuple(self._found))

    def show_refusal(self, error: Invalid) -> None:
        """Print the findings for which the mesh has refused the submission, if it tells any. Raises: Invalid, Usage."""
        details: Any = error.details.get("diagnostics")
        if not isinstance(details, dict):
            return
        if passes(self.findings):  # the mesh has changed since
            from stepflow.client.conversion import diagnostic_of
            from stepflow.rpc.findings import finding_message

            self._found = [_diagnostic(diagnostic_of(finding_message(tree))) for tree in details["diagnostics"]]
        refuse_errors(self._found, REFUSAL, before=self._alone)


def _diagnostic(item: FlowDiagnostic) -> Diagnostic:
    """Return a finding as the renderer takes it. A code of a later version is shown by its text and level."""
    from stepflow.flow.diagnostics import is_known

    level: Any = item.level if item.level in ("warning", "error", "fatal") else "error"
    code = item.code if is_known(item.code) else _STANDS_FOR_UNKNOWN
    return Diagnostic(code, item.message, item.path or None, item.data, severity=level)


__all__ = ["REFUSAL", "MeshCheck"]
