"""The check of `stepflow run`: what it refuses, what it lets pass, and how to go without it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepflow import telemetry
from stepflow.cli.__main__ import main

HEAD = "name: n\ndescription: d\n"
WRONG = HEAD + "steps:\n- {id: a, component: /builtin/nop, input: 1}\noutput: {$step: a}\n"
UNDECLARED = HEAD + "schemas: {properties: {variables: {type: object}}}\noutput: {$variable: x}\n"
UNTAKEN = HEAD + (
    "steps:\n- {id: a, component: /builtin/nop, input: 1}\noutput: {$if: {$input: x}, then: {$step: a}, else: well}\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    telemetry.configure()


def run(text: str, *options: str) -> int:
    Path("flow.yaml").write_text(text)
    return main(["run", "--flow", "flow.yaml", *options])


def test_a_refused_flow_leaves_nothing_behind(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(WRONG) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "did you mean `/builtin/noop`?" in shown.err
    assert "run_id" not in shown.err
    assert not list(folder.glob(".stepflow/runs/*"))


@pytest.mark.parametrize("option", ["--no-check", "--no-validate-input"])
def test_a_flow_that_works_in_spite_of_an_error_runs_without_a_check(
    option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(UNTAKEN, "--input-json", '{"x": false}') == 1
    assert run(UNTAKEN, "--input-json", '{"x": false}', option) == 0
    assert json.loads(capfd.readouterr().out)["result"] == "well"


def test_without_a_check_only_fatal_findings_refuse(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(UNDECLARED) == 1
    assert "ERROR Variable 'x' is not declared" in capfd.readouterr().err
    assert run(UNDECLARED, "--no-check", "--variables-json", '{"x": 7}') == 0
    assert json.loads(capfd.readouterr().out)["result"] == 7
    assert run(WRONG.replace("$step: a", "$step: b"), "--no-check") == 1
    assert "FATAL" in capfd.readouterr().err


def test_without_a_check_the_input_is_not_compared_with_its_schema(capfd: pytest.CaptureFixture[str]) -> None:
    typed = HEAD + "schemas: {properties: {input: {type: integer}}}\noutput: {$input: $}\n"
    assert run(typed, "--input-json", '"text"') == 2
    assert run(typed, "--input-json", '"text"', "--no-check") == 0
    assert json.loads(capfd.readouterr().out)["result"] == "text"


def test_the_option_with_the_old_name_is_not_in_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    shown = capfd.readouterr().out
    assert "--no-check" in shown
    assert "--no-validate-input" not in shown


def test_all_errors_are_shown_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    both = UNDECLARED.replace("output:", "steps:\n- {id: a, component: /builtin/nop, mustExecute: true}\noutput:")
    assert run(both) == 1
    shown = capfd.readouterr().err
    assert "is not declared" in shown
    assert "`/builtin/nop`, which does not exist" in shown


def test_an_override_may_correct_a_component(capfd: pytest.CaptureFixture[str]) -> None:
    right = json.dumps({"steps": {"a": {"value": {"component": "/builtin/noop"}}}})
    assert run(WRONG, "--overrides-json", right) == 0
    assert run(WRONG.replace("nop", "noop"), "--overrides-json", right.replace("noop", "npoo")) == 1
    assert "`/builtin/npoo`, which does not exist" in capfd.readouterr().err


def test_wrong_values_are_an_error_of_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    declared = "schemas: {properties: {variables: {type: object, properties: {x: {}}, required: [x]}}}\n"
    flow = HEAD + declared + "output: {$variable: x}\n"
    assert run(flow) == 2
    assert "error[VARIABLES_INVALID]" in capfd.readouterr().err
    assert run(flow, "--variables-json", '{"x": 1}') == 0


def test_a_batch_is_checked_once(capfd: pytest.CaptureFixture[str]) -> None:
    Path("items.jsonl").write_text("1\n2\n3\n")
    assert run(WRONG, "--inputs", "items.jsonl") == 1
    assert capfd.readouterr().err.count("did you mean") == 1


def test_a_list_given_as_a_batch_is_told_how_to_become_lines(capfd: pytest.CaptureFixture[str]) -> None:
    Path("items.json").write_text(json.dumps([1, 2], indent=2))
    assert run(HEAD + "output: {$input: $}\n", "--inputs", "items.json") == 2
    assert "each line is the JSON input of one item; this makes lines of a list: jq -c '.[]' items.json" in (
        capfd.readouterr().err
    )


def test_a_warning_is_told_once_and_a_missing_title_not_at_all(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("variables: {}\noutput: 1\n", "--input", "{}") == 0
    shown = capfd.readouterr().err
    assert shown.count("`variables` is not read") == 1
    assert "stepflow validate" not in shown
    assert run("variables: {}\noutput: {$variable: x}\n", "--input", "{}") == 2
    assert capfd.readouterr().err.count("`variables` is not read") == 1


def test_many_warnings_are_cut_short(capfd: pytest.CaptureFixture[str]) -> None:
    values = json.dumps({f"unlike_{number}": number for number in range(14)})
    assert run(HEAD + "output: 1\n", "--variables-json", values) == 0
    shown = capfd.readouterr().err
    assert shown.count("warning: Variable 'unlike_") == 10
    assert "4 more warnings" in shown
