"""Failures in words: one line with step and place, the last lines of a batch, the list of `--error`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from stepflow.cli.display.failures import FAILED_ITEMS_MAX, FailedItems, failed_line, has_trace, print_errors
from stepflow.cli.display.flow_lines import FlowLines
from stepflow.cli.display.live import LiveView
from stepflow.codec import encode
from stepflow.errors import Code, Failure
from stepflow.flow import flow_id, parse_flow
from stepflow.run.views import StepEvent, StepView

if TYPE_CHECKING:
    from pathlib import Path

FLOW = """\
name: lines
steps:
  - id: first
    component: /builtin/sleep
    input:
      duration_ms:
        $input: none
  - id: all
    component: /builtin/map
    input:
      items: [1]
      workflow:
        $literal:
          steps:
            - id: inner
              component: /builtin/sleep
              input: {duration_ms: {$input: none}}
          output:
            $step: inner
output:
  - $step: first
"""


@dataclass
class RunOf:
    """A run as `FlowLines` reads it."""

    flow_id: str
    labels: dict[str, Any] = field(default_factory=dict)
    items_total: int = 1


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "lines.yaml"
    file.write_text(FLOW)
    return RunOf(flow_id(parse_flow(FLOW, source="lines.yaml", format="yaml")), {"flow": str(file)})


def error_of(message: str = "no", **data: Any) -> dict[str, Any]:
    return {"code": "COMPONENT_FAILED", "message": message, "data": data}


def line(error: dict[str, Any], run: Any = None) -> str:
    return failed_line(error, str, None if run is None else FlowLines(run))


def test_a_line_names_step_component_attempt_and_host():
    error = error_of(step="7/all[0]/ask", component="/mine/ask", attempt=2, host="h1", details={"n": 1})
    assert line(error) == ("COMPONENT_FAILED: no; step 7/all[0]/ask, component /mine/ask, attempt 2, host h1")


def test_a_line_of_an_earlier_version_has_the_message_alone():
    assert line({"code": "TIMEOUT", "message": "too slow"}) == "TIMEOUT: too slow"
    assert line(error_of(reason="GONE")) == "COMPONENT_FAILED: no"


def test_a_long_message_does_not_hide_the_step():
    assert line(error_of("x" * 5_000, step="a", component="/c", attempt=1)).endswith(
        "x…; step a, component /c, attempt 1"
    )


def test_control_characters_of_a_step_are_shown_and_not_sent():
    assert "\x1b" not in line(error_of(step="a\x1b[31m\n", component="/c"))


@pytest.mark.parametrize(
    ("step", "component", "expression", "number"),
    [
        ("first", "/builtin/sleep", "steps[0].input.duration_ms", 6),
        ("all[0]/inner", "/builtin/sleep", "steps[0].input.duration_ms", 17),
        ("all[0]", "", "output", 18),
        ("", "", "output[0]", 21),
        ("first", "/builtin/sleep", "steps[0].input.gone.since", 5),
    ],
)
def test_an_expression_is_named_by_the_line_of_the_file(run, step, component, expression, number):
    shown = line(error_of(step=step, component=component, expression=expression), run)
    assert f"; at lines.yaml:{number} ({expression})" in shown


def test_in_a_batch_the_item_is_no_part_of_the_place(run):
    run.items_total = 2
    shown = line(error_of(step="1/first", component="/c", expression="steps[0].input.duration_ms"), run)
    assert "at lines.yaml:6 (" in shown


def test_a_file_that_is_no_longer_the_flow_has_no_lines(run, tmp_path):
    (tmp_path / "lines.yaml").write_text(FLOW.replace("first", "begin"))
    shown = line(error_of(step="first", component="/c", expression="steps[0].input.duration_ms"), run)
    assert "; at steps[0].input.duration_ms, step first" in shown


@pytest.mark.parametrize("flow", [None, "", "named-flow", "/nowhere/flow.yaml"])
def test_a_stored_flow_has_no_lines(flow):
    shown = line(error_of(expression="output"), RunOf("f" * 64, {"flow": flow}))
    assert shown == "COMPONENT_FAILED: no; at output"


def test_the_end_of_a_batch_names_ten_failed_items_and_the_command_for_the_others(capsys):
    failed = FailedItems()
    results: list[Any] = [{"outcome": "success", "result": 1}]
    results += [{"outcome": "failed", "error": error_of(f"no {item}")} for item in range(1, 14)]
    results.append({"outcome": "failed", "error": {"code": "CANCELLED", "message": "stopped"}})
    assert list(failed.noting(results)) == results
    failed.say(str, "stepflow runs get R --error", None)

    lines = capsys.readouterr().err.splitlines()
    assert lines[:FAILED_ITEMS_MAX] == [f"item {item}: COMPONENT_FAILED: no {item}" for item in range(1, 11)]
    assert lines[FAILED_ITEMS_MAX:] == ["and 3 more failed items; this shows them all: stepflow runs get R --error"]


def test_a_trace_is_told_by_its_presence():
    assert has_trace(error_of(frames=[{"file": "a.py"}]))
    assert not has_trace(error_of(frames=[]))
    assert not has_trace({"code": "TIMEOUT", "message": "no"})


def view(path: str, status: str, data: dict[str, Any], message: str = "no") -> StepView:
    failure = Failure(Code.COMPONENT_FAILED, message, encode(data))
    return StepView("r", 0, path.rpartition("/")[2], 0, "/c", 0, status=status, outcome=failure, path=path)


def test_errors_are_listed_with_frames_causes_tracebacks_and_stderr(capsys):
    frames = [
        {"file": "c.py", "line": 3, "function": "greet", "code": "look_up()"},
        {"file": "json/decoder.py", "line": 9, "function": "decode", "library": True},
    ]
    cause = {"exception": "KeyError: 1", "frames": [{"file": "c.py", "line": 2, "function": "row"}]}
    steps = [
        view("a", "failed", {"frames": frames, "causes": [cause], "step": "a", "component": "/c", "attempt": 1}),
        view("b", "failed", {"traceback": "Traceback:\n  File x"}),
        view("c", "failed", {"stderr": "last words\ntwice"}),
        view("d", "skipped", {}),
    ]
    print_errors(steps, [(0, steps[0].outcome), (1, Failure(Code.CANCELLED, "stopped"))], str, FlowLines(RunOf("f")))
    assert capsys.readouterr().out == (
        "step a: COMPONENT_FAILED: no\n"
        "  component /c, attempt 1\n"
        "  c.py:3 in greet\n"
        "    look_up()\n"
        "  in libraries:\n"
        "  json/decoder.py:9 in decode\n"
        "  caused by KeyError: 1\n"
        "  c.py:2 in row\n"
        "step b: COMPONENT_FAILED: no\n"
        "  traceback of the server:\n"
        "    Traceback:\n"
        "      File x\n"
        "step c: COMPONENT_FAILED: no\n"
        "  end of the server's stderr:\n"
        "    last words\n"
        "    twice\n"
        "item 1: CANCELLED: stopped\n"
    )


@pytest.mark.parametrize("frames", [7, [7], [{}], [{"file": []}], {"a": 1}])
def test_odd_frames_of_other_servers_are_no_error(frames, capsys):
    print_errors([view("a", "failed", {"frames": frames, "causes": 3})], [], str, FlowLines(RunOf("f")))
    assert "step a: COMPONENT_FAILED: no" in capsys.readouterr().out


def test_the_live_table_counts_skipped_steps_apart():
    live = LiveView(str)
    facts: dict[str, Any] = {"run_id": "r", "depth": 0, "item": 0, "component": "/c", "attempt": 0, "at_ms": 1}
    failure = Failure(Code.COMPONENT_FAILED, "no")
    live.on_event(StepEvent("failed", step_id="b", step_index=0, failure=failure, **facts))
    live.on_event(StepEvent("skipped", step_id="c", step_index=1, failure=failure, message="b", **facts))
    shown = str(live._frame(40).renderables[-1])
    assert "1 failed · 1 skipped" in shown
    assert "(b failed)" in str(live._frame(40).renderables[1])
