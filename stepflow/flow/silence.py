"""Warnings that a flow's author has silenced: `metadata.ignoreWarnings` of the flow, or of a step.

The member lists codes (`1101`) and kinds (`missingFlowDescription`). A step's list applies to findings at that step.
Only warnings are silenced: errors stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from stepflow.flow.diagnostics import Diagnostic
    from stepflow.flow.model import Flow

IGNORE_WARNINGS = "ignoreWarnings"


class Silence:
    """What the metadata of a flow and of its steps silence."""

    def __init__(self, flow: Mapping[str, Any], steps: Iterable[Mapping[str, Any]]) -> None:
        """Read the `metadata` of the flow, and of each step in order."""
        self._everywhere = _names(flow)
        self._by_step = {f"$.steps[{index}]": _names(metadata) for index, metadata in enumerate(steps)}

    def without_silenced(self, findings: Iterable[Diagnostic]) -> Iterator[Diagnostic]:
        """Yield the findings that are not silenced."""
        for finding in findings:
            if finding.level != "warning" or {str(finding.code), finding.kind}.isdisjoint(self._at(finding.path)):
                yield finding

    def _at(self, path: str | None) -> set[str]:
        if path is None or not path.startswith("$.steps["):
            return self._everywhere
        return self._everywhere | self._by_step.get(path[: path.find("]") + 1], set())


def _names(metadata: Mapping[str, Any]) -> set[str]:
    names = metadata.get(IGNORE_WARNINGS)
    return {str(name) for name in names if isinstance(name, (int, str))} if isinstance(names, list) else set()


def silence_of(flow: Flow) -> Silence:
    """Return what a flow silences."""
    return Silence(flow.metadata, (step.metadata for step in flow.steps))
