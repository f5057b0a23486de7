"""`stepflow validate`: diagnostics of flows and configs, output formats, and exit codes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepflow import telemetry
from stepflow.cli.__main__ import main

GOOD = "name: n\ndescription: d\nsteps:\n- {id: a, component: /builtin/noop, input: 1}\noutput: {$step: a}\n"
WARNED = GOOD.replace("name: n\n", "")
WRONG = GOOD.replace("$step: a", "$step: b").replace("/builtin/noop", "noop")


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that the repository's config is not found."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validate(text: str, *options: str, name: str = "flow.yaml") -> int:
    Path(name).write_text(text)
    return main(["validate", "--flow", name, *options])


def test_a_good_flow_passes(capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(GOOD) == 0
    shown = capfd.readouterr()
    assert shown.err == "✅ Validation passed with no errors\n"
    assert shown.out == ""


def test_warnings_are_shown_and_pass(capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(WARNED) == 0
    shown = capfd.readouterr().err
    assert "0 fatal, 0 errors, 1 warning\n" in shown
    assert "WARNING The flow has no name ($.name)" in shown


def test_a_finding_that_reads_the_same_is_shown_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(GOOD.replace("input: 1", "input: [{$variable: x}, {$variable: x}]")) == 0
    shown = capfd.readouterr().err
    assert "1 warning\n" in shown
    assert shown.count("Variable 'x' is used") == 1


def test_a_flow_has_not_passed_if_its_server_does_not_start(capfd: pytest.CaptureFixture[str]) -> None:
    Path("stepflow-config.yml").write_text(
        "plugins:\n  mine: {type: stepflow, transport: stdio, command: python, args: [-c, '1']}\n"
        "routes:\n  /mine: [{plugin: mine}]\n"
    )
    mine = GOOD.replace("/builtin/noop", "/mine/noop")
    assert validate(mine, "--servers") == 1
    shown = capfd.readouterr().err
    assert "passed" not in shown
    assert "exited with code 0" in shown
    assert "does its script call `serve()`" in shown
    assert validate(mine.replace("name: n\n", ""), "--servers") == 1
    assert "Validation incomplete: 0 fatal, 0 errors, 1 warning\n" in capfd.readouterr().err


@pytest.mark.parametrize("opening", ["{ x: 1", '"text'])
def test_what_is_not_closed_is_named_with_its_line(opening: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(f"name: n\noutput: {opening}\ndescription: d\n") == 1
    assert "that begins on line 2, " in capfd.readouterr().err


def test_fatal_diagnostics_and_errors_fail_and_stand_before_warnings(capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(WRONG.replace("name: n\n", "")) == 1
    lines = capfd.readouterr().err.splitlines()
    assert "1 fatal, 1 error, 2 warnings" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["FATAL", "ERROR", "WARNING", "WARNING"]
    assert "($.output" in lines[1]


def test_json_goes_to_stdout_with_the_same_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(WRONG, "--json") == 1
    shown = capfd.readouterr()
    tree = json.loads(shown.out)
    assert (tree["numFatal"], tree["numError"]) == (1, 1)
    assert {item["code"] for item in tree["diagnostics"]} >= {3003, 2500}
    assert shown.err == ""


def test_a_misspelt_member_is_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(GOOD + "descripton: x\n") == 0
    assert "description" in capfd.readouterr().err


def test_the_config_beside_the_flow_is_checked_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    Path("stepflow-config.yml").write_text(
        "plugins: {b: {type: builtin}, unused: {type: builtin}}\nroutes: {/builtin: [{plugin: b}]}\n"
    )
    assert validate(GOOD) == 0
    assert "unused" in capfd.readouterr().err


def test_a_named_config_is_checked_instead(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("stepflow-config.yml").write_text("plugins: {b: {type: builtin}, unused: {type: builtin}}\nroutes: {}\n")
    Path("other.yml").write_text("plugins: {b: {type: builtin}}\nroutes: {/builtin: [{plugin: b}]}\n")
    assert validate(GOOD, "--config", "other.yml") == 0
    assert "unused" not in capfd.readouterr().err


def test_an_unknown_route_is_an_error_by_a_config_and_a_warning_without_one(capfd: pytest.CaptureFixture[str]) -> None:
    elsewhere = GOOD.replace("/builtin/noop", "/mesh/noop")
    assert validate(elsewhere) == 0, "the flow may be meant for a mesh"
    assert "WARNING Step 'a' calls `/mesh/noop`, and no route leads there" in capfd.readouterr().err
    Path("stepflow-config.yml").write_text("plugins: {b: {type: builtin}}\nroutes: {/builtin: [{plugin: b}]}\n")
    assert validate(elsewhere) == 1
    assert "ERROR Step 'a' calls `/mesh/noop`" in capfd.readouterr().err


def test_the_findings_about_components_are_in_the_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(GOOD.replace("noop", "nop"), "--json") == 1
    [item] = json.loads(capfd.readouterr().out)["diagnostics"]
    assert (item["code"], item["kind"], item["path"]) == (2900, "unknownComponent", "$.steps[0].component")
    assert item["data"] == {"step_id": "a", "component": "/builtin/nop"}


def test_a_config_that_cannot_be_used_fails(capfd: pytest.CaptureFixture[str]) -> None:
    Path("bad.yml").write_text("plugins: {b: {type: nonsense}}\nroutes: {}\n")
    assert validate(GOOD, "--config", "bad.yml") == 1
    assert "bad.yml" in capfd.readouterr().err


def test_unknown_keys_of_a_config_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    Path("stepflow-config.yml").write_text(
        "plugins: {b: {type: builtin}}\nroute: {}\nroutes: {/builtin: [{plugin: b}]}\n"
    )
    assert validate(GOOD) == 0
    assert "warning:" in capfd.readouterr().err


def test_json_flows_are_read_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert validate('{"name": "n", "description": "d"}', name="flow.json") == 0
    assert validate("name: n", name="flow.json") == 1
    capfd.readouterr()


def test_a_large_flow_is_refused_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "flow.yaml").open("wb") as sparse:
        sparse.truncate(50_000_000_000)
    assert main(["validate", "--flow", "flow.yaml"]) == 1
    assert "50,000,000,000 bytes" in capfd.readouterr().err


def test_several_flows_have_a_report_each_and_one_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    for name, text in (("good.yaml", GOOD), ("wrong.yaml", WRONG), ("none.yaml", "steps: 1\n")):
        Path(name).write_text(text)

    assert main(["validate", "good.yaml", "good.yaml"]) == 0
    assert capfd.readouterr().err.endswith("2 flows: 2 passed, 0 failed\n")

    assert main(["validate", "good.yaml", "wrong.yaml", "none.yaml"]) == 1
    shown = capfd.readouterr()
    good, wrong, none = shown.err.split("=== ")[1:]
    assert good == "good.yaml ===\n✅ Validation passed with no errors\n"
    assert wrong.startswith("wrong.yaml ===\nValidation failed: 1 fatal, 1 error")
    assert none.startswith("none.yaml ===\nerror[FLOW_INVALID]: none.yaml:1:1: $.steps:")
    assert none.endswith("3 flows: 1 passed, 2 failed\n")
    assert shown.out == ""


def test_the_json_of_several_flows_is_a_list_with_the_files(capfd: pytest.CaptureFixture[str]) -> None:
    for name, text in (("good.yaml", GOOD), ("wrong.yaml", WRONG), ("none.yaml", "steps: 1\n")):
        Path(name).write_text(text)
    assert main(["validate", "good.yaml", "wrong.yaml", "none.yaml", "--json"]) == 1
    good, wrong, none = json.loads(capfd.readouterr().out)
    assert (good["flow"], good["numFatal"], wrong["flow"], wrong["numFatal"]) == ("good.yaml", 0, "wrong.yaml", 1)
    assert (none["flow"], none["error"]["reason"]) == ("none.yaml", "FLOW_INVALID")


def test_a_quiet_check_tells_only_of_flows_that_fail(capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(WARNED, "-q") == 0
    assert capfd.readouterr().err == ""
    Path("wrong.yaml").write_text(WRONG)
    assert main(["validate", "flow.yaml", "wrong.yaml", "-q"]) == 1
    shown = capfd.readouterr().err
    assert "wrong.yaml" in shown
    assert "flow.yaml" not in shown


def test_the_config_of_several_flows_is_told_of_once(capfd: pytest.CaptureFixture[str]) -> None:
    Path("stepflow-config.yml").write_text(
        "plugins: {b: {type: builtin}}\nroute: {}\nroutes: {/builtin: [{plugin: b}]}\n"
    )
    for name in ("one.yaml", "two.yaml"):
        Path(name).write_text(GOOD)
    assert main(["validate", "one.yaml", "two.yaml"]) == 0
    assert capfd.readouterr().err.count("warning:") == 1


def test_a_missing_file_among_several_is_a_wrong_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    Path("good.yaml").write_text(GOOD)
    assert main(["validate", "good.yaml", "missing.yaml"]) == 2
    assert main(["validate", "-", "-"]) == 2
    assert "stdin holds one of them" in capfd.readouterr().err
