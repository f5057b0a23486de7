"""The live display of a run: its texts, and the steps shown on a small terminal."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest

from stepflow.cli.display.lines import LineView
from stepflow.cli.display.live import LiveView, time_left_ms
from stepflow.cli.display.texts import coarse_duration, duration, plain, progress_text
from stepflow.cli.display.view import QuietView, choose_view
from stepflow.errors import Code, Failure
from stepflow.log_lines import LogLine, StepLog
from stepflow.run.views import StepEvent


def event(kind: Any, step: str, index: int, **members: Any) -> StepEvent:
    facts = {"run_id": "root", "depth": 0, "item": 0, "component": "/a/b", "attempt": 1, "at_ms": 1_000}
    return StepEvent(kind=kind, step_id=step, step_index=index, **(facts | members))


def as_is(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_250, "1.2 s"),
        (61_000, "1 min 1 s"),
        (3_600_000, "1 h 0 min"),
        (7_500_000, "2 h 5 min"),
        (86_400_000, "1 d 0 h"),
        (2_000_000_000, "23 d 3 h"),
    ],
)
def test_durations_are_short(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


def test_texts_of_components_are_redacted_in_one_line_and_cut() -> None:
    shown = plain("a\n\x1b[31msecret\x07 " + "x" * 1_000, lambda text: text.replace("secret", "[REDACTED]"))
    assert shown.startswith(r"a \x1b[31m[REDACTED]")
    assert len(shown) < 400
    assert "\x1b" not in shown


def test_a_failure_line_is_redacted(capfd: pytest.CaptureFixture[str]) -> None:
    view = LineView(lambda text: text.replace("hunter2", "[REDACTED]"))
    view.begin(1)
    view.on_event(event("failed", "s", 0, duration_ms=5, failure=Failure(Code.TIMEOUT, "hunter2 took too long")))
    assert capfd.readouterr().err == "failed  s in 5 ms: TIMEOUT: [REDACTED] took too long\n"


def test_a_large_batch_tells_of_failures_and_retries_only(capfd: pytest.CaptureFixture[str]) -> None:
    view = LineView(as_is)
    view.begin(1_000)
    view.on_event(event("completed", "s", 0, duration_ms=5))
    view.on_event(event("failed", "s", 0, item=7, failure=Failure(Code.TIMEOUT, "late")))
    assert capfd.readouterr().err == "failed  s[7]: TIMEOUT: late\n"


def test_what_is_not_a_terminal_gets_lines_and_whoever_wants_quiet_gets_nothing() -> None:
    assert isinstance(choose_view(as_is, quiet=False), LineView)
    assert isinstance(choose_view(as_is, quiet=True), QuietView)


@pytest.mark.parametrize(
    ("done", "total", "message", "text"),
    [
        (3, 10, "pages", "3/10 pages"),
        (1_234_567, 2e6, "", "1,234,567/2,000,000"),
        (0.4, 1, "uploading", "40% uploading"),
        (7, 0, "", "7"),
        (0, 0, "warming up", "warming up"),
        (0, 10, "", "0/10"),
    ],
)
def test_a_progress_report_is_shown_with_its_numbers(done: float, total: float, message: str, text: str) -> None:
    report = event("progress", "s", 0, message=message, done=done, total=total)
    assert progress_text(report, as_is) == text
    view = LiveView(as_is)
    view.on_event(report)
    assert text in frame(view, 10)


def frame(view: LiveView, height: int) -> str:
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=80).print(view._frame(height))
    return file.getvalue()


def test_the_steps_of_a_sub_run_stand_below_the_step_that_opened_it() -> None:
    view = LiveView(as_is)
    view.on_event(event("sub_run", "map", 0))
    view.on_event(event("started", "other", 1))
    view.on_event(event("started", "inner", 0, run_id="sub", depth=1, item=2, parent=("root", 0, 0)))
    lines = frame(view, 30).splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["map", "inner[2]", "other"]
    assert lines[1].startswith("run       inner[2]")


def test_a_low_terminal_shows_what_is_under_way_and_counts_the_rest() -> None:
    view = LiveView(as_is)
    for index in range(50):
        view.on_event(event("started", f"s{index}", index))
        if index % 10:
            view.on_event(event("completed", f"s{index}", index))
    shown = frame(view, 12)
    assert all(f"s{index} " in shown for index in (0, 10, 20, 30, 40))
    assert len(shown.splitlines()) <= 12
    assert "45 steps done · 5 under way · 42 not shown" in shown


def test_a_retry_shows_when_it_is_due_and_which_attempt_it_was() -> None:
    view = LiveView(as_is)
    due_ms = time.time_ns() // 1_000_000 + 3_600_000
    failure = Failure(Code.UNREACHABLE, "gone")
    view.on_event(event("retrying", "s", 0, attempt=2, until_ms=due_ms, failure=failure))
    shown = frame(view, 30)
    assert "retry" in shown
    assert "attempt 2  again in " in shown
    assert "UNREACHABLE: gone" in shown


@pytest.mark.parametrize(
    ("elapsed_ms", "ended", "left", "expected_ms"),
    [(10_000, 10, 30, 30_000), (1_000, 10, 30, None), (10_000, 0, 30, None), (10_000, 40, 0, None)],
)
def test_the_time_left_follows_the_pace_of_the_items(
    elapsed_ms: int, ended: int, left: int, expected_ms: int | None
) -> None:
    assert time_left_ms(elapsed_ms, ended, left) == expected_ms


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (400, "1 s"),
        (89_000, "89 s"),
        (170_000, "3 min"),
        (4_900_000, "1 h 20 min"),
        (40_000_000, "11 h"),
        (200_000_000, "2 d"),
    ],
)
def test_an_estimate_is_coarse(milliseconds: int, text: str) -> None:
    assert coarse_duration(milliseconds) == text


def test_a_batch_that_was_resumed_is_estimated_by_its_own_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    view = LiveView(as_is)
    view._items_total = 100
    view.tick(90)
    view._begun_at_ms -= 10_000
    view.tick(95)
    assert "about 10 s left" in frame(view, 30)


def test_steps_of_one_id_in_different_sub_runs_are_told_apart_in_lines(capfd: pytest.CaptureFixture[str]) -> None:
    view = LineView(as_is)
    view.begin(1)
    for run_id, path in (("a", "first[0]/ask"), ("b", "second[0]/ask")):
        view.on_event(event("completed", "ask", 0, run_id=run_id, depth=1, duration_ms=5, path=path))
    assert capfd.readouterr().err == "done    first[0]/ask in 5 ms\ndone    second[0]/ask in 5 ms\n"


def test_parallel_steps_stand_in_the_order_of_the_flow() -> None:
    view = LiveView(as_is)
    for index in (2, 0, 1):
        view.on_event(event("started", f"s{index}", index))
    assert [line.split()[1] for line in frame(view, 30).splitlines()[:3]] == ["s0", "s1", "s2"]


def test_a_long_name_leaves_room_for_the_rest_and_keeps_its_end() -> None:
    view = LiveView(as_is)
    view.on_event(event("started", "summarise_the_whole_document_in_one_paragraph_12", 0))
    shown = frame(view, 30).splitlines()[0]
    assert "summarise_the_wh…" in shown
    assert "paragraph_12  " in shown


def step_log(*texts: str, **members: Any) -> StepLog:
    facts = {"run_id": "root", "item": 0, "step_id": "ask", "step_index": 0, "component": "/a/b", "depth": 0}
    lines = tuple(LogLine(1_000, members.pop("level", ""), text) for text in texts)
    return StepLog(**{"attempt": 1, "lines": lines, **facts, **members})


def test_log_lines_are_told_with_their_step_and_without_secrets(capfd: pytest.CaptureFixture[str]) -> None:
    view = LineView(lambda text: text.replace("hunter2", "[REDACTED]"))
    view.begin(1)
    view.on_log(step_log("  hunter2 is indented", "\x1b[2Jnext"))
    view.on_log(step_log("careful", level="warning", dropped=1_234))
    view.on_log(step_log("fine", level="info", depth=1, item=3))
    view.on_log(step_log("of the plugin", run_id="", step_id="tools"))
    assert capfd.readouterr().err.splitlines() == [
        "ask |   [REDACTED] is indented",
        r"ask | \x1b[2Jnext",
        "ask | … 1,234 lines left out",
        "ask | WARNING careful",
        "  ask[3] | fine",
        "tools | of the plugin",
    ]


def test_log_lines_of_a_batch_have_the_path_of_their_step(capfd: pytest.CaptureFixture[str]) -> None:
    view = LineView(as_is)
    view.begin(8)
    view.on_log(step_log("fine", item=7))
    assert capfd.readouterr().err == "7/ask | fine\n"


def test_log_lines_of_a_large_batch_are_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    view = LineView(as_is)
    view.begin(101)
    view.on_log(step_log("one of many"))
    assert capfd.readouterr().err == ""


def test_log_lines_stand_above_the_table_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    view = LiveView(as_is)
    view.begin(1)
    view.on_event(event("started", "ask", 0))
    view.on_log(step_log("loading [bold]the[/bold] model"))
    view.tick(0)
    view.end()
    shown = screen.getvalue()
    assert "ask | loading [bold]the[/bold] model\n" in shown
    assert shown.index("loading") < shown.rindex("run     ask")
