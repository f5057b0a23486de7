"""The command itself: help, global options, exit codes, and error messages."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepflow import __version__, telemetry
from stepflow.cli.__main__ import main
from stepflow.cli.app import app, report
from stepflow.cli.console import Usage
from stepflow.errors import Unavailable

COMMANDS = [command.name for command in app.registered_commands if not command.hidden]


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text("name: n\ndescription: d\noutput: {$input: $}\n")
    return path


def stepflow(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepflow.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]  # the options vary


def test_the_version_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"stepflow {__version__}\n"


def test_help_names_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capfd.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in shown


def command_lines() -> list[list[str]]:
    groups = [
        [group.name, command.name]
        for group in app.registered_groups
        if group.typer_instance is not None
        for command in group.typer_instance.registered_commands
        if not command.hidden
    ]
    return [[name] for name in COMMANDS if name] + [[part for part in names if part] for names in groups]


@pytest.mark.parametrize("command", command_lines(), ids=" ".join)
def test_the_help_of_every_command_has_examples_of_it(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    shown = capfd.readouterr().out
    assert "Examples:" in shown
    assert re.search(rf"^ +stepflow {' '.join(command)}\b", shown, re.MULTILINE)


@pytest.mark.parametrize("group", ["", *(str(group.name) for group in app.registered_groups)])
def test_no_line_of_a_list_of_commands_is_cut_off(
    group: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*filter(None, [group]), "--help"]) == 0
    _, _, listed = capfd.readouterr().out.partition("\nCommands:\n")
    assert listed
    assert [line for line in listed.splitlines() if line.endswith("...")] == []


def test_help_imports_nothing_heavy() -> None:
    """A budget of 0.25 s for `stepflow --help` has no room for any of these."""
    code = """
import sys
from stepflow.cli.__main__ import main
assert main(["--help"]) == 0
heavy = "asyncio grpc google msgspec yaml ruamel pydantic rich structlog httpx mcp obstore jsonschema_rs sqlite3"
print([name for name in heavy.split() if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"


def test_no_arguments_show_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capfd.readouterr()
    assert "Usage: stepflow" in shown.out + shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["validate"],
        ["validate", "--no-such-option"],
        ["validate", "missing.yaml"],
        ["--log-level", "loud", "validate", "x.yaml"],
        ["test", "--max-concurrency", "0"],
        ["list-components", "--format", "xml"],
        ["validate", "a.yaml", "--flow", "b.yaml"],
        ["run", "-", "--input", "-"],
        ["runs", "list", "--server", "localhost:1", "--store", "x"],
        ["submit", "flow.yaml", "--timeout", "soon"],
        ["submit", "flow.yaml", "--label", "flow=x"],
        ["list-components", "--schemas", "maybe"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2_and_a_message(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "rror" in shown.err
    assert "Traceback" not in shown.err


def test_an_error_shows_its_reason_and_text_but_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "flow.yaml"
    bad.write_text("steps: [")
    assert main(["validate", str(bad)]) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    assert re.match(r"error\[[A-Z_]+\]: .*flow\.yaml:\d+:\d+", shown.err)
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("option", [["--log-level", "debug"], ["-vv"], ["--log-level", "DEBUG"]])
def test_debug_shows_the_traceback_as_well(
    option: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "flow.yaml"
    bad.write_text("steps: [")
    assert main([*option, "validate", str(bad)]) == 1
    assert "Traceback" in capfd.readouterr().err


def test_the_environment_sets_the_log_level(
    flow: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEPFLOW_LOG_LEVEL", "debug")
    assert main(["validate", str(flow)]) == 0
    assert telemetry.is_enabled("debug")
    capfd.readouterr()


def test_people_get_no_colours_where_there_is_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path / "missing.yaml")]) == 2
    assert "\x1b" not in capfd.readouterr().err


def test_a_command_runs_as_a_module_too() -> None:
    done = stepflow("--version")
    assert (done.returncode, done.stdout) == (0, f"stepflow {__version__}\n")


def test_a_mistake_of_ours_shows_its_type_and_place_but_not_its_text(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="hunter2") as caught:
        int("hunter2")
    assert report(caught.value) == 1
    shown = capfd.readouterr().err
    assert "error[INTERNAL]: internal error: ValueError at test_main.py:" in shown
    assert "--log-level debug" in shown
    assert "hunter2" not in shown


def test_an_error_of_ours_is_found_in_a_group_of_tasks(capfd: pytest.CaptureFixture[str]) -> None:
    inner = ExceptionGroup("tasks", [ValueError("x"), Unavailable("STORE_BUSY", "the store is busy")])
    assert report(ExceptionGroup("outer", [inner])) == 1
    assert capfd.readouterr().err == "error[STORE_BUSY]: the store is busy\n"


def test_a_usage_error_in_a_group_ends_with_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert report(ExceptionGroup("tasks", [Usage("OPTION_INVALID", "no")])) == 2
    assert "no" in capfd.readouterr().err


def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    pipe = tmp_path / "flow.yaml"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "stepflow.cli", "validate", str(pipe)]
    # Opening for writing returns when the command has opened it for reading: then it waits for its flow.
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        pipe.open("wb"),
    ):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


def test_a_reader_who_leaves_early_gets_no_traceback(flow: Path) -> None:
    """`stepflow … | head` closes our stdout while we write."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "stepflow.cli", "validate", "--json", str(flow)]
    with subprocess.Popen(command, stdout=write_end, stderr=subprocess.PIPE, text=True) as process:
        os.close(write_end)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == ""
