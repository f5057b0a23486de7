"""`stepflow test`: discovery of files, execution, report, and written output."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from stepflow import telemetry
from stepflow.cli.__main__ import main
from stepflow.cli.testing.discovery import find_files

FLOW = """\
# a flow with two cases
name: two
description: d
steps:
- {id: a, component: /builtin/noop, input: {$input: $}}
output: {got: {$step: a}, run_id: anything}
test:
  cases:
  - name: right
    input: 1
    output: {outcome: success, result: {got: 1, run_id: something else}}
  # the second
  - name: other
    input: {x: [1, 2]}
    output:
      outcome: success
      result: {got: {x: [1, 2]}}   # partial
"""


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def run_tests(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the exit code and what people saw; stdout stays empty."""
    code = main(["test", *arguments])
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return code, shown.err


# --- which files -------------------------------------------------------------------------------------------------


def test_folders_are_searched_for_yaml_in_sorted_order() -> None:
    for name in ("d/b.yaml", "d/a.yml", "d/e/c.yaml", "d/x.json", "d/.hidden/h.yaml", "z.yaml"):
        write(name, "")
    assert [str(path) for path in find_files([Path("z.yaml"), Path("d"), Path("d/b.yaml")])] == [
        "d/a.yml",
        "d/b.yaml",
        "d/e/c.yaml",
        "z.yaml",
    ]


def test_no_files_are_no_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_tests(capfd) == (0, "No workflow files found\n")


def test_a_path_that_is_not_there_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    code, shown = run_tests(capfd, "missing.yaml")
    assert code == 2
    assert "missing.yaml" in shown


def test_files_that_are_no_flows_or_have_no_cases_are_skipped(capfd: pytest.CaptureFixture[str]) -> None:
    write("broken.yaml", "steps: [")
    write("list.yaml", "[1]")
    write("stepflow-config.yml", "plugins: {b: {type: builtin}}\nroutes: {/builtin: [{plugin: b}]}")
    write("flow.yaml", "output: 1")
    code, shown = run_tests(capfd)
    assert code == 0
    assert "Files tested: 0\nFiles skipped: 4\nFiles errored: 0\n" in shown


def test_a_broken_file_that_claims_to_be_a_flow_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    write("flow.yaml", "schema: https://stepflow.org/schemas/v1/flow.json\nsteps: [{id: a}]\n")
    code, shown = run_tests(capfd)
    assert code == 1
    assert "Files errored: 1" in shown
    assert "flow.yaml:2" in shown


# --- how they run ------------------------------------------------------------------------------------------------


def test_cases_pass_when_what_is_expected_is_there(capfd: pytest.CaptureFixture[str]) -> None:
    write("flow.yaml", FLOW)
    code, shown = run_tests(capfd, "flow.yaml")
    assert code == 0
    assert "flow.yaml: 2/2 passed" in shown
    for line in ("Files tested: 1", "Total test cases: 2", "Passed: 2", "Failed: 0", "Execution errors: 0"):
        assert f"{line}\n" in shown


def test_a_wrong_result_fails_and_says_where(capfd: pytest.CaptureFixture[str]) -> None:
    write("flow.yaml", FLOW.replace("{got: 1,", "{got: 2,"))
    code, shown = run_tests(capfd)
    assert code == 1
    assert "flow.yaml: 1/2 passed" in shown
    assert "$.result.got: expected 2, got 1" in shown
    assert "1 test(s) failed" in shown
    assert "-  got: 2" not in shown


def test_a_flow_that_fails_unexpectedly_shows_its_failure(capfd: pytest.CaptureFixture[str]) -> None:
    write("flow.yaml", FLOW.replace("/builtin/noop", "/builtin/nop"))
    code, shown = run_tests(capfd)
    assert code == 1
    assert '$.outcome: expected "success", got "failed"' in shown
    assert "the flow failed: ORCHESTRATOR_ERROR: error routing component: plugin `builtin` has no component" in shown


def test_diff_shows_both_results_side_by_side(capfd: pytest.CaptureFixture[str]) -> None:
    write("flow.yaml", FLOW.replace("{got: 1,", "{got: 2,"))
    _, shown = run_tests(capfd, "--diff")
    assert "-  got: 2" in shown
    assert "+  got: 1" in shown


def test_a_case_without_an_output_fails_and_shows_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    write("flow.yaml", "output: {$input: $}\ntest: {cases: [{name: c, input: hello}]}\n")
    code, shown = run_tests(capfd)
    assert code == 1
    assert "result: hello" in shown


def test_an_expected_failure_passes(capfd: pytest.CaptureFixture[str]) -> None:
    write(
        "flow.yaml",
        """\
        output: {$input: $.missing}
        test:
          cases:
          - name: c
            input: {}
            output:
              outcome: failed
              error: {code: EXPRESSION_FAILURE, message: Input path $.missing not found}
        """,
    )
    assert run_tests(capfd)[0] == 0


def test_only_the_named_cases_run(capfd: pytest.CaptureFixture[str]) -> None:
    write("flow.yaml", FLOW.replace("{got: 1,", "{got: 2,"))
    code, shown = run_tests(capfd, "--case", "other", "--case", "elsewhere")
    assert code == 0
    assert "flow.yaml: 1/1 passed" in shown


def test_a_case_name_that_nobody_has_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    write("flow.yaml", FLOW)
    code, shown = run_tests(capfd, "--case", "nobody")
    assert code == 2
    assert "nobody" in shown


def test_a_flow_that_cannot_run_is_an_error_and_the_others_are_tested(capfd: pytest.CaptureFixture[str]) -> None:
    write("a.yaml", FLOW.replace("$step: a", "$step: nowhere"))
    write("b.yaml", FLOW)
    code, shown = run_tests(capfd)
    assert code == 1
    assert "b.yaml: 2/2 passed" in shown
    for line in ("Files tested: 1", "Files errored: 1", "Total test cases: 4", "Passed: 2", "Execution errors: 2"):
        assert f"{line}\n" in shown


# --- with which config -------------------------------------------------------------------------------------------

MOCK = """\
plugins:
  m:
    type: mock
    components:
      /say:
        input_schema: {}
        output_schema: {}
        behaviors:
          {a: 1}: {outcome: success, result: WORD}
          {a: 2}: {outcome: success, result: two}
routes: {/m: [{plugin: m}]}
retry: {transportMaxRetries: 0}
"""

SAYING = """\
steps: [{id: say, component: /m/say, input: {a: 1}}]
output: {$step: say}
test:
  CONFIG
  cases: [{name: c, input: null, output: {outcome: success, result: WORD}}]
"""


def saying(word: str, config: str = "") -> str:
    return SAYING.replace("CONFIG", config).replace("WORD", word)


def mock(word: str) -> str:
    return MOCK.replace("WORD", word)


def test_the_config_beside_the_flow_is_used(capfd: pytest.CaptureFixture[str]) -> None:
    write("d/stepflow-config.yml", mock("beside"))
    write("d/flow.yaml", saying("beside"))
    assert run_tests(capfd, "d")[0] == 0


def test_a_config_for_tests_is_used_before_it(capfd: pytest.CaptureFixture[str]) -> None:
    write("d/stepflow-config.yml", mock("beside"))
    write("d/stepflow-config.test.yml", mock("tested"))
    write("d/flow.yaml", saying("tested"))
    assert run_tests(capfd, "d/flow.yaml")[0] == 0


def test_the_config_file_that_the_flow_names_is_used_before_that(capfd: pytest.CaptureFixture[str]) -> None:
    write("d/stepflow-config.test.yml", mock("tested"))
    write("d/sub/named.yml", mock("named"))
    write("d/flow.yaml", saying("named", "configFile: sub/named.yml"))
    assert run_tests(capfd, "d/flow.yaml")[0] == 0


def test_a_config_inside_of_the_flow_is_used(capfd: pytest.CaptureFixture[str]) -> None:
    inline = "config: {plugins: {b: {type: builtin}}, routes: {/m: [{plugin: b}]}}"
    text = saying("x", inline).replace("/m/say", "/m/noop").replace("result: x", "result: {a: 1}")
    write("flow.yaml", text)
    assert run_tests(capfd, "flow.yaml")[0] == 0


def test_the_config_of_the_command_line_wins(capfd: pytest.CaptureFixture[str]) -> None:
    write("given.yml", mock("given"))
    write("d/named.yml", mock("named"))
    write("d/flow.yaml", saying("given", "configFile: named.yml"))
    assert run_tests(capfd, "d/flow.yaml", "--config", "given.yml")[0] == 0


def test_a_flow_with_both_kinds_of_config_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    write("flow.yaml", saying("x", "configFile: a.yml\n  config: {plugins: {}, routes: {}}"))
    code, shown = run_tests(capfd, "flow.yaml")
    assert code == 1
    assert "configFile" in shown


# --- update ------------------------------------------------------------------------------------------------------


def test_update_writes_failing_results_and_leaves_the_rest(capfd: pytest.CaptureFixture[str]) -> None:
    path = write("flow.yaml", FLOW.replace("{got: 1,", "{got: 2,"))
    code, shown = run_tests(capfd, "--update")
    assert code == 0
    assert "right (updated)" in shown
    text = path.read_text()
    assert "# a flow with two cases" in text
    assert "  # the second\n" in text
    assert "result: {got: {x: [1, 2]}}   # partial" in text
    first = yaml.safe_load(text)["test"]["cases"][0]["output"]
    assert first == {"outcome": "success", "result": {"got": 1, "run_id": "00000000-0000-0000-0000-000000000000"}}
    assert run_tests(capfd)[0] == 0


def test_update_leaves_a_passing_file_alone(capfd: pytest.CaptureFixture[str]) -> None:
    path = write("flow.yaml", FLOW)
    before = path.stat().st_mtime_ns
    assert run_tests(capfd, "--update")[0] == 0
    assert (path.read_text(), path.stat().st_mtime_ns) == (FLOW, before)


def test_cases_of_one_name_are_updated_each(capfd: pytest.CaptureFixture[str]) -> None:
    path = write("flow.yaml", "output: {$input: $}\ntest: {cases: [{name: c, input: 1}, {name: c, input: 2}]}\n")
    assert run_tests(capfd, "--update")[0] == 0
    cases = yaml.safe_load(path.read_text())["test"]["cases"]
    assert [case["output"]["result"] for case in cases] == [1, 2]
