"""Findings of validation and parsing about a flow, as data.

Each code has a kind and a level, listed in `_CODES`; codes are stable, texts are not. The codes from 1900 to 1999
and from 2900 to 2999 extend the public list: remarks of parsing on unread members, and the check before a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Level = Literal["fatal", "error", "warning"]

_CODES: dict[int, tuple[str, Level]] = {
    1000: ("unreachableStep", "warning"),
    1001: ("missingFlowName", "warning"),
    1002: ("missingFlowDescription", "warning"),
    1003: ("unvalidatedFieldAccess", "warning"),
    1004: ("missingVariableSchema", "warning"),
    1101: ("typeCheckIndeterminate", "warning"),
    1200: ("noPluginsConfigured", "warning"),
    1201: ("noRoutingRulesConfigured", "warning"),
    1202: ("unusedPlugin", "warning"),
    1900: ("unknownMember", "warning"),
    1901: ("memberNotRead", "warning"),
    1902: ("numberReadAsText", "warning"),
    1903: ("invalidInputSchema", "warning"),
    1904: ("templateInText", "warning"),
    1905: ("unquotedInnerFlow", "warning"),
    1906: ("pluginWithoutHost", "warning"),
    2003: ("invalidSubflowLiteral", "error"),
    2004: ("undefinedVariable", "error"),
    2005: ("undefinedRequiredVariable", "error"),
    2006: ("documentSlip", "error"),
    2100: ("typeMismatch", "error"),
    2101: ("unknownPropertyInPath", "error"),
    2200: ("invalidRouteReference", "error"),
    2500: ("invalidComponent", "error"),
    2900: ("unknownComponent", "error"),
    2901: ("unknownRoute", "error"),
    2902: ("componentNotAdmitted", "error"),
    2903: ("unknownInputMember", "error"),
    2904: ("missingVariable", "error"),
    2905: ("unknownVariable", "error"),
    2906: ("variableOfInnerFlow", "error"),
    3000: ("duplicateStepId", "fatal"),
    3001: ("emptyStepId", "fatal"),
    3002: ("selfReference", "fatal"),
    3003: ("undefinedStepReference", "fatal"),
}
_EXPERIMENTAL = frozenset({1003})

HINTS = frozenset({1904, 1905})
"""Warnings about what may well be meant: never errors."""

OF_VALUES = frozenset({2904, 2905})
"""Findings about the values that a run is given, not about its flow."""


def is_known(code: int) -> bool:
    """Return True if this version has the code."""
    return code in _CODES


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A finding. `path` looks like `$.steps[0].input.x`; `data` has the facts, with keys in snake_case."""

    code: int
    formatted: str
    path: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    severity: Level | None = None
    """The level, if it is not that of the code: a type that may not fit is a warning, and `--strict` makes errors."""

    def __post_init__(self) -> None:
        assert self.code in _CODES

    @property
    def kind(self) -> str:
        return _CODES[self.code][0]

    @property
    def level(self) -> Level:
        return self.severity or _CODES[self.code][1]

    @property
    def experimental(self) -> bool:
        return self.code in _EXPERIMENTAL

    def to_tree(self) -> dict[str, Any]:
        """Return the public JSON shape; empty members are left out."""
        tree: dict[str, Any] = {
            "kind": self.kind,
            "code": self.code,
            "level": self.level,
            "formatted": self.formatted,
        }

        if self.data:
            tree["data"] = self.data
        if self.path is not None:
            tree["path"] = self.path
        if self.experimental:
            tree["experimental"] = True
        return tree


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Findings in the order of the checks."""

    items: tuple[Diagnostic, ...] = ()

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __add__(self, more: Iterable[Diagnostic]) -> Diagnostics:
        return Diagnostics((*self.items, *more))

    def without(self, others: Iterable[Diagnostic]) -> Diagnostics:
        """Return the findings that are not among these."""
        left_out = list(others)
        return Diagnostics(tuple(item for item in self.items if item not in left_out))

    def strict(self) -> Diagnostics:
        """Return the findings with errors in place of warnings, apart from `HINTS`."""
        return Diagnostics(
            tuple(
                replace(item, severity="error") if item.level == "warning" and item.code not in HINTS else item
                for item in self.items
            )
        )

    @property
    def blocks(self) -> bool:
        """True if a flow with these findings must not run."""
        return any(item.level != "warning" for item in self.items)

    @property
    def num_fatal(self) -> int:
        return self._count("fatal")

    @property
    def num_error(self) -> int:
        return self._count("error")

    @property
    def num_warning(self) -> int:
        return self._count("warning")

    def to_tree(self) -> dict[str, Any]:
        """Return `{diagnostics, numFatal, numError, numWarning}`."""
        return {
            "diagnostics": [item.to_tree() for item in self.items],
            "numFatal": self.num_fatal,
            "numError": self.num_error,
            "numWarning": self.num_warning,
        }

    def _count(self, level: Level) -> int:
        return sum(item.level == level for item in self.items)
