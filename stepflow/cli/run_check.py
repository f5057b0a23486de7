"""The check of `stepflow run`: before anything starts, and again with the lists of the started servers.

Nothing is stored before the second check has passed. `--no-check` refuses only what cannot run at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.cli.findings import check, passes, print_report, refuse_errors
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from component_host.backend import BackendListing
    from stepflow.check import Catalogue
    from stepflow.config import Config
    from stepflow.flow import Flow


def check_text(path: Path, flow: Flow, config: Config, *, no_check: bool = False) -> None:
    """Refuse a flow or config with errors; show the warnings of their texts, and count the other warnings.

    `no_check`: refuse only fatal findings. Raises: Invalid `FLOW_INVALID`, after the diagnostics were printed.
    """
    diagnostics = check(flow, config)
    if diagnostics.num_fatal or not (no_check or passes(diagnostics)):
        print_report(diagnostics)
        raise Invalid("FLOW_INVALID", "the flow was not run; correct the errors listed above")

    for text in (*config.warnings, *(f"{path}: {item.path}: {item.formatted}" for item in flow.warnings)):
        console.warn(text)

    # Experimental warnings come with every path into a result: shown at each run, they would only be ignored.
    others = sum(item.level == "warning" and not item.experimental for item in diagnostics)
    others -= sum(item.level == "warning" for item in flow.warnings)
    if others > 0:
        console.say(console.styled(f"{others} warning(s): stepflow validate --flow {path} shows them", "dim"))


@dataclass(slots=True)
class RunCheck:
    """The check of one run. `overrides` are applied before it."""

    flow: Flow
    config: Config
    variables: Mapping[str, Any]
    overrides: Any = None
    _told: set[tuple[int, str | None, str]] = field(default_factory=set, init=False)

    def before_start(self) -> None:
        """Check with what the configuration tells. Raises: Invalid, Usage."""
        from stepflow.embedded.known_components import catalogue_of

        self._check(catalogue_of(self.config))

    def after_start(self, listings: Mapping[str, BackendListing]) -> None:
        """Check with the lists of the started servers, if there are any. Raises: Invalid."""
        from stepflow.embedded.known_components import catalogue_of, components_without_servers

        if listings.keys() - components_without_servers(self.config).keys():
            self._check(catalogue_of(self.config, listings))

    def _check(self, catalogue: Catalogue) -> None:
        from stepflow.check import check_against

        found = check_against(self.flow, catalogue=catalogue, variables=self.variables, overrides=self.overrides)
        new = [item for item in found if (item.code, item.path, item.formatted) not in self._told]
        self._told.update((item.code, item.path, item.formatted) for item in new)
        refuse_errors(new, "the flow was not run; correct the errors listed above")
