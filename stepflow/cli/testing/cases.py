"""What `stepflow test` does: find flows, run their cases, compare, report.

For each file: one batch run of its selected cases, on a store in memory, with the config that the command line, the
flow's `test` section or the folder names. What counts as equal is in `compare`; writing new expectations into a file is
in `update`. A file that has no cases is skipped, and so is one that is no flow, unless its `schema` member claims so.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.cli.testing.compare import differences, normalise, sort_members
from stepflow.cli.values import read_config, read_file, read_flow, to_yaml, value_format
from stepflow.codec import encode
from stepflow.errors import Invalid, StepflowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from stepflow.config import Config
    from stepflow.flow import Flow

FLOW_SCHEMA = "https://stepflow.org/schemas/v1/flow.json"
"""A document with this `schema` is meant to be a flow."""

DIFFERENCES_MAX = 20
"""Lines shown per case; more than that is for `--diff`."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    config: Path | None = None
    cases: tuple[str, ...] = ()
    update: bool = False
    diff: bool = False
    max_concurrency: int = 10


@dataclass(slots=True)
class CaseOutcome:
    """How a case went. `index` is its place in the file; `expected` is None where it has no `output`; both results are
    normalised."""

    index: int
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
    """How a file went. With an `error`, none of its cases counts; `skipped` says why there was nothing to run."""

    path: Path
    skipped: str = ""
    case_count: int = 0
    cases: list[CaseOutcome] = field(default_factory=list)
    error: StepflowError | None = None

    @property
    def passed_count(self) -> int:
        return sum(case.passed for case in self.cases)

    @property
    def line(self) -> str:
        if self.skipped:
            return console.styled(f"{self.path}: skipped ({self.skipped})", "dim")
        if self.error is not None:
            return f"{self.path}: {console.styled('error', 'red')}"
        good = self.passed_count == self.case_count
        return console.styled(f"{self.path}: {self.passed_count}/{self.case_count} passed", "green" if good else "red")


def test_paths(paths: Iterable[Path], options: Options) -> None:
    """Test all flows at these paths and print a report.

    Raises:
        Usage: a path that is not there, a case name that no flow has.
        Invalid: TESTS_FAILED, at the end, when a case failed or a file could not be tested.
    """
    files = find_files(paths)
    if not files:
        console.say("No workflow files found")
        return
    outcomes = [_test_file(path, options) for path in files]
    if options.cases and all(outcome.skipped for outcome in outcomes):
        raise console.Usage("CASE_NOT_FOUND", f"no test case is named {' or '.join(map(repr, options.cases))}")
    _print_summary(outcomes)
    failed = sum(outcome.case_count - outcome.passed_count for outcome in outcomes)
    errored = sum(outcome.error is not None for outcome in outcomes)
    if failed or errored:
        what = f"{failed} test(s) failed" if failed else f"{errored} file(s) could not be tested"
        raise Invalid("TESTS_FAILED", what)


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are named, and the YAML files below the folders that are named, sorted, each once.

    Hidden folders (`.venv`, `.git`) are left out. Raises: Usage.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found.update(_yaml_files(path))
        elif path.is_file():
            found.add(path)
        else:
            raise console.Usage("FILE_UNREADABLE", f"there is no file or folder {path}", path=str(path))
    return sorted(found)


def _yaml_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix in (".yaml", ".yml") and not hidden and path.is_file():
            yield path


# --- one file ----------------------------------------------------------------------------------------------------


def _test_file(path: Path, options: Options) -> FileOutcome:
    outcome = FileOutcome(path)
    try:
        flow = _flow_or_none(path)
        if flow is None:
            outcome.skipped = "not a flow"
            return outcome
        cases = _select(flow, options.cases)
        outcome.case_count = len(cases)
        if not cases:
            outcome.skipped = "no test cases"
            return outcome
        console.say(console.styled(f"=== {path} ===", "bold"))
        results = _run(flow, [case for _, case in cases], path, options)
        outcome.cases = [_judge(*case, result) for case, result in zip(cases, results, strict=True)]
        if options.update:
            _update(path, outcome.cases)
    except StepflowError as error:
        outcome.error = error
        outcome.cases = []
    _print_file(outcome, options)
    return outcome


def _flow_or_none(path: Path) -> Flow | None:
    """Parse a flow; None for a document that neither is one nor claims to be one."""
    try:
        return read_flow(path)
    except StepflowError:
        if _claims_to_be_a_flow(path):
            raise
        return None


def _claims_to_be_a_flow(path: Path) -> bool:
    from stepflow.flow import parse_tree

    try:
        tree = parse_tree(read_file(path, what="flow"), source=str(path), format=value_format(path, what="flow")).value
    except StepflowError:
        return False
    return isinstance(tree, dict) and tree.get("schema") == FLOW_SCHEMA


def _select(flow: Flow, names: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """Return the cases of these names (all without names) with their places in the file."""
    cases = (flow.test or {}).get("cases") or []
    return [(index, case) for index, case in enumerate(cases) if not names or case["name"] in names]


def _run(flow: Flow, cases: list[dict[str, Any]], path: Path, options: Options) -> list[dict[str, Any]]:
    from stepflow.embedded.mesh import run_flow_once
    from stepflow.flow import validate_flow

    fatal = [item for item in validate_flow(flow) if item.level == "fatal"]
    if fatal:
        raise Invalid("FLOW_INVALID", f"{path}: {'; '.join(item.formatted for item in fatal)}")
    _warn_of_unfit_inputs(flow, cases)
    config = _choose_config(flow, path, options.config)
    inputs = [encode(case["input"]) for case in cases]
    # Unchecked, because one unfit input would refuse the whole batch, and with it the cases that are fine.
    run = run_flow_once(flow, inputs, config=config, max_concurrency=options.max_concurrency, check_input=False)
    return asyncio.run(run)


def _warn_of_unfit_inputs(flow: Flow, cases: list[dict[str, Any]]) -> None:
    """Say which cases `stepflow run` would refuse, because their inputs do not fit the flow's schema."""
    from stepflow.flow import InputValidator

    try:
        validator = InputValidator.for_input(flow)
    except Invalid as error:
        console.warn(error.message)
        return
    for case in cases:
        problem = validator.check(case["input"]) if validator is not None else None
        if problem is not None:
            place, text = problem
            console.warn(f"case {case['name']!r}: its input does not fit the schema at {place or '/'}: {text}")


def _choose_config(flow: Flow, path: Path, given: Path | None) -> Config:
    """Return the config: of the command line, else of the flow's `test` section, else of the folder."""
    section = flow.test or {}
    named, inline = section.get("configFile"), section.get("config")
    if given is not None:
        return read_config(given)
    if named is not None and inline is not None:
        raise Invalid("TEST_CONFIG_AMBIGUOUS", f"{path}: `test` has both configFile and config; keep one of them")
    if named is not None:
        return read_config(path.parent / named)
    if inline is not None:
        from stepflow.config import config_from_tree

        return config_from_tree(inline, source=f"{path}: test.config", base_dir=path.parent)
    return read_config(None, path, test=True)


def _judge(index: int, case: dict[str, Any], result: dict[str, Any]) -> CaseOutcome:
    outcome = CaseOutcome(index, case["name"], normalise(result))
    if case.get("output") is None:
        outcome.problems = ["the case has no `output` to compare with"]
    else:
        outcome.expected = normalise(case["output"])
        outcome.problems = list(differences(outcome.expected, outcome.actual))
    return outcome


def _update(path: Path, cases: Sequence[CaseOutcome]) -> None:
    """Write what failing cases gave into the file; what passes stays as its author wrote it."""
    from stepflow.cli.testing.update import update_outputs

    failing = [case for case in cases if not case.passed]
    if failing:
        update_outputs(path, {case.index: case.actual for case in failing})
    for case in failing:
        case.updated = True
        case.problems = []


# --- the report --------------------------------------------------------------------------------------------------


def _print_file(outcome: FileOutcome, options: Options) -> None:
    if outcome.error is not None:
        console.error(outcome.error)
    for case in outcome.cases:
        mark = console.styled("ok", "green") if case.passed else console.styled("FAILED", "red")
        console.say(f"  {mark}  {case.name}{' (updated)' if case.updated else ''}")
        if not case.passed:
            _print_problems(case, options)
    console.say(outcome.line)
    console.say()


def _print_problems(case: CaseOutcome, options: Options) -> None:
    shown = case.problems[:DIFFERENCES_MAX]
    for problem in shown:
        console.say(f"      {problem}")
    if len(case.problems) > len(shown):
        console.say(f"      … and {len(case.problems) - len(shown)} more")
    if case.expected is None:
        for line in to_yaml({"output": case.actual}).splitlines():
            console.say(f"      {line}")
    elif options.diff:
        for line in _diff(case):
            console.say(f"      {line}")


def _diff(case: CaseOutcome) -> Iterator[str]:
    import difflib

    expected, actual = (to_yaml(sort_members(tree)).splitlines() for tree in (case.expected, case.actual))
    for line in difflib.unified_diff(expected, actual, "expected", "actual", lineterm=""):
        yield console.styled(line, *{"-": ["red"], "+": ["green"]}.get(line[:1], []))


def _print_summary(outcomes: Sequence[FileOutcome]) -> None:
    passed = sum(outcome.passed_count for outcome in outcomes)
    ran = sum(len(outcome.cases) for outcome in outcomes)
    total = sum(outcome.case_count for outcome in outcomes)
    console.say(console.styled("=== Results ===", "bold"))
    for outcome in outcomes:
        console.say(outcome.line)
    console.say()
    console.say(console.styled("=== Summary ===", "bold"))
    counts = {
        "Files tested": sum(outcome.error is None and not outcome.skipped for outcome in outcomes),
        "Files skipped": sum(bool(outcome.skipped) for outcome in outcomes),
        "Files errored": sum(outcome.error is not None for outcome in outcomes),
        "Total test cases": total,
        "Passed": passed,
        "Failed": ran - passed,
        "Execution errors": total - ran,
    }
    for name, count in counts.items():
        console.say(f"{name}: {count}")
