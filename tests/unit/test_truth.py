"""`support.truth` itself: the violations that it must report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.truth import Adoption, Execution, Journal, Ledger, Outcome, faults_of

if TYPE_CHECKING:
    from pathlib import Path

KEY = "run/0/a"
AT_MS = 1_000


def journal(attempt: int = 1, *, ends: int = 1) -> Journal:
    done = Outcome(KEY, attempt, AT_MS, "host-1", failed=False)
    return Journal(
        "run", completed={KEY: done}, adoptions={0: [Adoption("executor-1", 1, handed_over=False)]}, ends=ends
    )


def executed(attempt: int, begun_ms: int, ended_ms: int | None = None) -> list[Execution]:
    lines = [Execution("begin", KEY, attempt, begun_ms * 1_000_000, 7)]
    return lines if ended_ms is None else [*lines, Execution("end", KEY, attempt, ended_ms * 1_000_000, 7)]


def test_a_step_that_ran_once_and_has_its_result_is_no_fault() -> None:
    assert faults_of(journal(), executed(1, 900, 990)) == []


def test_an_attempt_that_was_lost_before_the_next_one_was_made_is_no_fault() -> None:
    assert faults_of(journal(2), [*executed(1, 800), *executed(2, 900, 990)]) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([*executed(1, 900, 990), *executed(1, 950)], "attempt 1 of run/0/a was executed 2 times"),
        ([*executed(1, 900, 990), *executed(2, 1_400)], "ran again 400 ms later, attempt 2"),
        (executed(1, 900), "has a result of attempt 1, which never ended"),
        ([], "has a result of attempt 1, which never ended"),
    ],
)
def test_what_must_not_be_is_told(found: list[Execution], words: str) -> None:
    (fault,) = faults_of(journal(), found)
    assert words in fault


def test_a_run_that_ended_twice_is_told() -> None:
    assert faults_of(journal(ends=2), executed(1, 900, 990)) == ["run run ended 2 times"]


def test_a_ledger_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.lines == []
    ledger.path.write_text("begin run/0/a b 1 5000000 7\nend run/0/a b 1 6000000 7\nbegin run/0/c 1 70")
    assert ledger.begun == [("run/0/a b", 1)]
    assert [line.what for line in ledger.by_run()["run"]] == ["begin", "end"]
