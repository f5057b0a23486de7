"""Outcomes of test cases and of their files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.errors import StepflowError


@dataclass(slots=True)
class CaseOutcome:
    """The outcome of a case. `actual` and `expected` are normalised; `expected` is None for a case without `output`."""

    index: int
    """Index in `test.cases` of the file."""
    name: str
    actual: Any
    expected: Any = None
    problems: list[str] = field(default_factory=list)
    updated: bool = False

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class FileOutcome:
    """The outcome of a file. With an `error`, none of its cases counts; `skipped` is the reason why no case ran."""

    path: Path
    skipped: str = ""
    case_count: int = 0
    cases: list[CaseOutcome] = field(default_factory=list)
    error: StepflowError | None = None

    @property
    def passed_count(self) -> int:
        return sum(case.passed for case in self.cases)
