"""The report of `stepflow test` on stderr: the cases of each file, then a summary of all files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.cli import console
from stepflow.cli.output import to_yaml
from stepflow.cli.testing.compare import sort_members

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stepflow.cli.testing.outcomes import CaseOutcome, FileOutcome

DIFFERENCES_MAX = 20
"""Differences shown per case; `--diff` shows all."""


def print_file(outcome: FileOutcome, *, diff: bool) -> None:
    """Print the outcome of a file and of each of its cases."""
    if outcome.error is not None:
        console.error(outcome.error)

    for case in outcome.cases:
        mark = console.styled("ok", "green") if case.passed else console.styled("FAILED", "red")
        console.say(f"  {mark}  {case.name}{' (updated)' if case.updated else ''}")
        if not case.passed:
            _print_problems(case, diff=diff)

    console.say(_file_line(outcome))
    console.say()


def print_summary(outcomes: Sequence[FileOutcome]) -> None:
    """Print a line per file, then the counts over all files."""
    console.say(console.styled("=== Results ===", "bold"))
    for outcome in outcomes:
        console.say(_file_line(outcome))
    console.say()

    passed = sum(outcome.passed_count for outcome in outcomes)
    ran = sum(len(outcome.cases) for outcome in outcomes)
    total = sum(outcome.case_count for outcome in outcomes)
    counts = {
        "Files tested": sum(outcome.error is None and not outcome.skipped for outcome in outcomes),
        "Files skipped": sum(bool(outcome.skipped) for outcome in outcomes),
        "Files errored": sum(outcome.error is not None for outcome in outcomes),
        "Total test cases": total,
        "Passed": passed,
        "Failed": ran - passed,
        "Execution errors": total - ran,
    }
    console.say(console.styled("=== Summary ===", "bold"))
    for name, count in counts.items():
        console.say(f"{name}: {count}")


def _file_line(outcome: FileOutcome) -> str:
    if outcome.skipped:
        return console.styled(f"{outcome.path}: skipped ({outcome.skipped})", "dim")
    if outcome.error is not None:
        return f"{outcome.path}: {console.styled('error', 'red')}"
    style = "green" if outcome.passed_count == outcome.case_count else "red"
    return console.styled(f"{outcome.path}: {outcome.passed_count}/{outcome.case_count} passed", style)


def _print_problems(case: CaseOutcome, *, diff: bool) -> None:
    shown = case.problems[:DIFFERENCES_MAX]
    for problem in shown:
        console.say(f"      {problem}")
    if len(case.problems) > len(shown):
        console.say(f"      … and {len(case.problems) - len(shown)} more")

    if case.expected is None:
        for line in to_yaml({"output": case.actual}).splitlines():
            console.say(f"      {line}")
    elif diff:
        for line in _diff(case):
            console.say(f"      {line}")


def _diff(case: CaseOutcome) -> Iterator[str]:
    import difflib

    expected, actual = (to_yaml(sort_members(tree)).splitlines() for tree in (case.expected, case.actual))
    for line in difflib.unified_diff(expected, actual, "expected", "actual", lineterm=""):
        yield console.styled(line, *{"-": ["red"], "+": ["green"]}.get(line[:1], []))
