"""The check of `stepflow run`: of the flow alone, with its components before anything starts, and with those of the
started servers before the first step.

Nothing is stored before the last check has passed. `--no-check` refuses only what cannot run at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.cli.findings import UNTITLED, check, counted, distinct, print_report, refuse_errors
from stepflow.embedded.known_components import catalogue_of, components_without_servers
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from component_host.backend import BackendListing
    from stepflow.check import Catalogue
    from stepflow.cli.found_flow import FoundFlow
    from stepflow.config import Config
    from stepflow.flow import Diagnostic, Diagnostics

REFUSAL = "the flow was not run; correct the errors listed above"


class RunCheck:
    """The check of one run."""

    def __init__(self, found: FoundFlow, config: Config, *, no_check: bool) -> None:
        self._found = found
        self._flow = found.flow
        self._config = config
        self._no_check = no_check
        self._variables: Mapping[str, Any] | None = None
        self._overrides: Any = None
        self._alone: Diagnostics = check(found.flow, config)
        self._told: set[tuple[int, str | None, str]] = set()

    def check_flow(self) -> None:
        """Refuse a flow or config with errors; show the warnings of their texts. Raises: Invalid `FLOW_INVALID`."""
        found = self._alone
        if found.num_fatal or (found.blocks and not self._no_check):
            if not found.num_fatal:
                found += self._against(catalogue_of(self._config))
            print_report(found)
            raise Invalid("FLOW_INVALID", REFUSAL)

        flow_warnings = (f"{self._found.text}: {item.path}: {item.formatted}" for item in self._flow.warnings)
        for text in (*self._config.warnings, *flow_warnings):
            console.warn(text)
        self._alone = self._alone.without(self._flow.warnings)

    def check_values(self, variables: Mapping[str, Any], overrides: Any) -> None:
        """Check with the values of the run and what its configuration tells. Raises: Invalid, Usage."""
        self._variables, self._overrides = variables, overrides
        if not self._no_check:
            found = self._new(catalogue_of(self._config))
            refuse_errors(found, REFUSAL, before=self._alone)

        # Shown at each run, experimental warnings (one for every path into a result) and those of a missing name or
        # description would only be ignored.
        alone = distinct(item for item in self._alone if item.level == "warning" and not item.experimental)
        others = sum(item.code not in UNTITLED for item in alone)
        if others > 0:
            hint = f"{counted(others, 'warning')}: `stepflow validate {self._found.argument}` shows them"
            console.say(console.styled(hint, "dim"))

    def check_servers(self, listings: Mapping[str, BackendListing]) -> None:
        """Check with the lists of the started servers, if there are any. Raises: Invalid, Usage."""
        if not self._no_check and listings.keys() - components_without_servers(self._config).keys():
            refuse_errors(self._new(catalogue_of(self._config, listings)), REFUSAL, before=self._alone)

    def _new(self, catalogue: Catalogue) -> list[Diagnostic]:
        """Return the findings that were not shown yet."""
        found = self._against(catalogue)
        new = [item for item in found if (item.code, item.path, item.formatted) not in self._told]
        self._told.update((item.code, item.path, item.formatted) for item in new)
        return new

    def _against(self, catalogue: Catalogue) -> Diagnostics:
        from stepflow.check import check_against

        return check_against(self._flow, catalogue=catalogue, variables=self._variables, overrides=self._overrides)
