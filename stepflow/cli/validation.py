"""The reports of `stepflow validate`, one per flow. A config is read, and its servers are asked, once for all flows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.cli.console import CheckFailed
from stepflow.cli.findings import check, print_report
from stepflow.cli.found_flow import check_stdin, find_flow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.check import Catalogue
    from stepflow.cli.found_flow import FoundFlow
    from stepflow.config import Config
    from stepflow.errors import StepflowError
    from stepflow.flow import Diagnostics


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """The options of `stepflow validate`."""

    config: Path | None = None
    server: str | None = None
    type_check: bool = False
    strict: bool = False
    servers: bool = False


@dataclass(slots=True)
class FlowReport:
    """What the check of one flow has found."""

    text: str
    """FLOW as it was given."""
    diagnostics: Diagnostics | None = None
    """None if the flow or its config cannot be read."""
    error: CheckFailed | None = None
    """Why the flow or its config cannot be read."""
    warnings: tuple[str, ...] = ()
    """About the config, with its first flow."""
    failures: list[StepflowError] = field(default_factory=list)
    """Why servers did not start, with the first flow of their config."""

    @property
    def passed(self) -> bool:
        return self.diagnostics is not None and not self.diagnostics.blocks and not self.failures

    def to_tree(self) -> dict[str, Any]:
        """Return the report for a list, with the flow that it is about."""
        if (error := self.error) is not None:
            return {"flow": self.text, "error": {"reason": error.reason, "message": error.message}}
        assert self.diagnostics is not None
        return {"flow": self.text, **self.diagnostics.to_tree()}

    def print(self, *, reports: bool = True) -> None:
        """Print the report on stderr; without `reports`, what is not about the flow."""
        for warning in self.warnings:
            console.warn(warning)
        if reports and self.diagnostics is not None:
            print_report(self.diagnostics, complete=not self.failures)
        for failure in filter(None, (self.error, *self.failures)):
            console.error(failure)


def find_flows(texts: Sequence[str], server: str | None) -> list[FoundFlow | FlowReport]:
    """Return the flows that the texts name, and the reports about those that are not flows.

    Raises: Usage (no such file), NotFound (no such stored flow), Unavailable (no mesh).
    """
    check_stdin(*texts)
    found: list[FoundFlow | FlowReport] = []
    for text in texts:
        try:
            found.append(find_flow(text, server))
        except CheckFailed as error:
            found.append(FlowReport(text, error=error))
    return found


class FlowValidator:
    """Checks flows, each with the config next to it, or all of them with one config or one mesh."""

    def __init__(self, options: ValidateOptions) -> None:
        self._options = options
        self._configs: dict[Path, Config] = {}
        """Config by the folder of its flows."""
        self._catalogues: dict[Path, Catalogue] = {}
        """By the file of the config, or by the folder without a file."""

    def report(self, found: FoundFlow) -> FlowReport:
        """Return the report about a flow. Raises: StepflowError."""
        options, report = self._options, FlowReport(found.text)
        if options.server is not None:
            from stepflow.cli.mesh_check import mesh_diagnostics

            report.diagnostics = mesh_diagnostics(
                options.server, found.flow, type_check=options.type_check, is_strict=options.strict
            )
            return report

        try:
            self._check(found, report)
        except CheckFailed as error:  # of the config
            report.error = error
        return report

    def _check(self, found: FoundFlow, report: FlowReport) -> None:
        """Check a flow with its config. Raises: Usage, CheckFailed."""
        strict, type_check = self._options.strict, self._options.type_check
        folder, config = self._config(found, report)
        diagnostics = check(found.flow, config)
        if not diagnostics.num_fatal:
            from stepflow.check import check_against, including_types

            catalogue = self._catalogue(config, folder, report)
            diagnostics += check_against(found.flow, catalogue=catalogue, with_types=not type_check)
            if type_check:
                from stepflow.cli.flow_types import types_of

                types = types_of(found.flow, catalogue, is_strict=strict)
                diagnostics = including_types(diagnostics, found.flow, types, is_strict=strict)
        report.diagnostics = diagnostics.strict() if strict and not type_check else diagnostics

    def _config(self, found: FoundFlow, report: FlowReport) -> tuple[Path, Config]:
        from stepflow.cli.input.documents import read_config

        folder = Path.cwd() if found.path is None else found.path.parent.absolute()
        config = self._configs.get(folder)
        if config is None:
            config = read_config(self._options.config, found.path)
            known = any(each.source == config.source for each in self._configs.values())
            report.warnings = () if known else config.warnings
            self._configs[folder] = config
        return folder, config

    def _catalogue(self, config: Config, folder: Path, report: FlowReport) -> Catalogue:
        from stepflow.cli.flow_types import known_catalogue

        key = config.source or folder
        if key not in self._catalogues:
            self._catalogues[key], report.failures = known_catalogue(config, servers=self._options.servers)
        return self._catalogues[key]


__all__ = ["FlowReport", "FlowValidator", "ValidateOptions", "find_flows"]
