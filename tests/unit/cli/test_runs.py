"""The tables of runs, and the details of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.views import RunView
from stepflow.cli.display.runs import ShownRun, print_run, print_runs
from stepflow.flow import Redactor, flow_from_tree

if TYPE_CHECKING:
    import pytest


def ended(*, completed: int, failed: int, cancelled: int) -> RunView:
    return RunView(
        run_id="018f0000-0000-7000-8000-000000000001",
        flow_id="f" * 64,
        flow_name="greet",
        status="cancelled",
        items_total=completed + failed + cancelled,
        items_completed=completed,
        items_failed=failed,
        items_cancelled=cancelled,
        created_at_ms=1_000,
        completed_at_ms=3_000,
    )


def test_the_counts_of_a_run_add_up_to_its_items(capsys: pytest.CaptureFixture[str]) -> None:
    redactor = Redactor(flow_from_tree({"output": 1}, source="test"))
    for run, listed, shown in (
        (ended(completed=5, failed=0, cancelled=0), "5/5", "5, 5 completed, 0 failed"),
        (
            ended(completed=2, failed=1, cancelled=3),
            "6/6 (1 failed, 3 cancelled)",
            "6, 2 completed, 1 failed, 3 cancelled",
        ),
    ):
        print_runs([(run, run.status)])
        assert f"  {listed}  " in capsys.readouterr().out
        print_run(ShownRun(run, run.status, [], [], redactor))
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("items:")]
        assert line.partition(":")[2].strip() == shown
