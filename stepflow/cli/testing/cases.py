"""Running the test cases of flows.

- The selected cases of a file are one batch run, on a store in memory.
- The config comes from the command line, else from the flow's `test` section, else from the folder.
- A file without cases is skipped, and so is a file that is no flow, unless its `schema` member names the flow schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.cli.display.texts import explained, plain
from stepflow.cli.input.documents import read_config, read_flow
from stepflow.cli.input.files import read_file, value_format
from stepflow.cli.interruptible import run_or_exit
from stepflow.cli.testing.compare import differences, normalise, without_mesh_data
from stepflow.cli.testing.discovery import FLOW_SCHEMA, find_files
from stepflow.cli.testing.outcomes import CaseOutcome, FileOutcome
from stepflow.cli.testing.report import print_file, print_summary
from stepflow.codec import encode
from stepflow.errors import Invalid, StepflowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from stepflow.config import Config
    from stepflow.flow import Flow


@dataclass(frozen=True, slots=True)
class CaseOptions:
    """The options of `stepflow test`."""

    config: Path | None = None
    cases: tuple[str, ...] = ()
    """Names of the cases to run; empty for all."""
    update: bool = False
    diff: bool = False
    max_concurrency: int = 10


def test_paths(paths: Iterable[Path], options: CaseOptions) -> None:
    """Test all flows at these paths and print a report.

    Raises:
        Usage: a path that does not exist, a case name that no flow has.
        Invalid: TESTS_FAILED, after the report: a case failed, or a file could not be tested.
    """
    files = find_files(paths)
    if not files:
        console.say("No workflow files found")
        return

    outcomes = [_test_file(path, options) for path in files]
    if options.cases and all(outcome.skipped for outcome in outcomes):
        raise console.Usage("CASE_NOT_FOUND", f"no test case is named {' or '.join(map(repr, options.cases))}")
    print_summary(outcomes)

    failed = sum(outcome.case_count - outcome.passed_count for outcome in outcomes)
    errored = sum(outcome.error is not None for outcome in outcomes)
    if failed or errored:
        what = f"{failed} test(s) failed" if failed else f"{errored} file(s) could not be tested"
        raise console.CheckFailed("TESTS_FAILED", what)


def _test_file(path: Path, options: CaseOptions) -> FileOutcome:
    """Run the selected cases of a file and print how they went."""
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

    print_file(outcome, diff=options.diff)
    return outcome


def _flow_or_none(path: Path) -> Flow | None:
    """Parse a flow. None for a document that is no flow and does not name the flow schema."""
    try:
        return read_flow(path)
    except StepflowError:
        if _names_flow_schema(path):
            raise
        return None


def _names_flow_schema(path: Path) -> bool:
    from stepflow.flow import parse_tree

    try:
        tree = parse_tree(read_file(path, what="flow"), source=str(path), format=value_format(path, what="flow")).value
    except StepflowError:
        return False
    return isinstance(tree, dict) and tree.get("schema") == FLOW_SCHEMA


def _select(flow: Flow, names: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """Return the cases with these names (all without names), with indexes in the file."""
    cases = (flow.test or {}).get("cases") or []
    return [(index, case) for index, case in enumerate(cases) if not names or case["name"] in names]


def _run(flow: Flow, cases: list[dict[str, Any]], path: Path, options: CaseOptions) -> list[dict[str, Any]]:
    """Run the cases as one batch and return their FlowResults. Raises: StepflowError."""
    from stepflow.embedded.mesh import run_flow_once
    from stepflow.flow import validate_flow

    fatal = [item for item in validate_flow(flow) if item.level == "fatal"]
    if fatal:
        raise Invalid("FLOW_INVALID", f"{path}: {'; '.join(item.formatted for item in fatal)}")
    _warn_of_invalid_inputs(flow, cases)

    config = _choose_config(flow, path, options.config)
    inputs = [encode(case["input"]) for case in cases]
    # Inputs are not checked: one invalid input would refuse the whole batch, and with it the valid cases.
    run = run_flow_once(flow, inputs, config=config, max_concurrency=options.max_concurrency, check_input=False)
    return run_or_exit(run)


def _warn_of_invalid_inputs(flow: Flow, cases: list[dict[str, Any]]) -> None:
    """Warn of cases that `stepflow run` would refuse because their input does not fit the flow's schema."""
    from stepflow.flow import InputValidator

    try:
        validator = InputValidator.for_input(flow)
    except Invalid as error:
        console.warn(error.message)
        return

    for case in cases:
        try:
            problem = validator.check(case["input"]) if validator is not None else None
        except Invalid as error:
            console.warn(f"case {case['name']!r}: {error.message}")
            continue
        if problem is not None:
            path, text = problem
            console.warn(f"case {case['name']!r}: its input does not fit the schema at {path or '/'}: {text}")


def _choose_config(flow: Flow, path: Path, given: Path | None) -> Config:
    """Return the config of the command line, else of the flow's `test` section, else of the folder."""
    if given is not None:
        return read_config(given)

    section = flow.test or {}
    named, inline = section.get("configFile"), section.get("config")
    if named is not None and inline is not None:
        text = f"{path}: `test` has both configFile and config; keep one of them"
        raise console.CheckFailed("TEST_CONFIG_AMBIGUOUS", text)
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
        if outcome.problems and "error" in outcome.actual:
            outcome.problems.append(_failure(outcome.actual["error"]))
    return outcome


def _failure(error: dict[str, Any]) -> str:
    """Return why the flow of a case failed, in one line."""
    code = error["code"]
    return f"the flow failed: {code}: {plain(explained(code, error['message'], error.get('data')), str)}"


def _update(path: Path, cases: Sequence[CaseOutcome]) -> None:
    """Write the results of failed cases into the file; passed cases keep their text."""
    from stepflow.cli.testing.update import update_outputs

    failed = [case for case in cases if not case.passed]
    if failed:
        update_outputs(path, {case.index: without_mesh_data(case.actual) for case in failed})
    for case in failed:
        case.updated = True
        case.problems = []
