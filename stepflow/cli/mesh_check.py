"""The check of a flow by a mesh: what its hosts offer, in the words of `stepflow run`; for `submit` and `validate`.

- Findings of the flow alone are left out: the command has shown them with places in the file.
- The mesh refuses a submission with errors by itself. It is asked before for the whole list, and for the warnings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli.findings import refuse_errors
from stepflow.errors import FailedPrecondition
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
        try:
            self._found = await _beyond(self._alone, client, reference, variables=variables, overrides=overrides)
        except FailedPrecondition as error:
            if error.reason != "CALL_UNKNOWN":
                raise

        # Errors are printed when the mesh has refused the submission: a repeated one gets its run.
        if not self.findings.blocks:
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
        if not self.findings.blocks:  # the mesh has changed since
            from stepflow.client.conversion import diagnostic_of
            from stepflow.rpc.findings import finding_message

            self._found = [_diagnostic(diagnostic_of(finding_message(tree))) for tree in details["diagnostics"]]
        refuse_errors(self._found, REFUSAL, before=self._alone)


def mesh_diagnostics(server: str, flow: Flow, *, type_check: bool, is_strict: bool) -> Diagnostics:
    """Return all findings about a flow, alone and by a mesh, for `stepflow validate`. Raises: StepflowError."""
    from stepflow.cli import remote
    from stepflow.flow import flow_bytes

    alone = Diagnostics(flow.warnings) + validate_flow(flow)
    if alone.num_fatal:
        return alone
    if type_check:  # which tells more exactly whether a path exists
        alone = Diagnostics(tuple(item for item in alone if not item.experimental))
    document, options = flow_bytes(flow), {"type_check": type_check, "strict": type_check and is_strict}
    alone += remote.ask(server, lambda client: _beyond(alone, client, document, **options))
    return alone.strict() if is_strict else alone


async def _beyond(alone: Diagnostics, client: Client, reference: bytes | str, **options: Any) -> list[Diagnostic]:
    """Return what a mesh finds beyond the findings of the flow alone, at any level."""
    known = {(item.code, item.path or "", item.formatted) for item in alone}
    found = await client.validate_flow(reference, **options)
    return [_diagnostic(item) for item in found if (item.code, item.path, item.message) not in known]


def _diagnostic(item: FlowDiagnostic) -> Diagnostic:
    """Return a finding as the renderer takes it. A code of a later version is shown by its text and level."""
    from stepflow.flow.diagnostics import is_known

    level: Any = item.level if item.level in ("warning", "error", "fatal") else "error"
    code = item.code if is_known(item.code) else _STANDS_FOR_UNKNOWN
    return Diagnostic(code, item.message, item.path or None, item.data, severity=level)


__all__ = ["REFUSAL", "MeshCheck", "mesh_diagnostics"]
