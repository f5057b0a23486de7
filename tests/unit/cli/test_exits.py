"""The exit codes: the table, each code from a command, and the page that lists them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from support import ROOT

from stepflow.cli import console, exits
from stepflow.cli.__main__ import main
from stepflow.cli.app import report
from stepflow.cli.display.follow import Following, follow
from stepflow.cli.display.view import choose_view
from stepflow.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    Forbidden,
    Invalid,
    NotFound,
    Overloaded,
    StepflowError,
    Unauthenticated,
    Unavailable,
)

if TYPE_CHECKING:
    from pathlib import Path

RUN_ID = "018f0000-0000-7000-8000-000000000001"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow.yaml").write_text("name: n\ndescription: d\noutput: {$input: text}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (console.Usage("OPTION_INVALID", "x"), 2),
        (Invalid("INPUT_INVALID", "x"), 2),
        (NotFound("RUN_NOT_FOUND", "x"), 2),
        (AlreadyExists("RUN_EXISTS", "x"), 2),
        (console.CheckFailed("YAML_INVALID", "x"), 1),
        (Invalid("FLOW_INVALID", "x"), 1),
        (FailedPrecondition("RUN_NOT_ENDED", "x"), 1),
        (Overloaded("STORE_FULL", "x"), 1),
        (DataLoss("STORE_CORRUPT", "x"), 1),
        (Unavailable("SERVER_START_FAILED", "x"), 1),
        (Unavailable("SERVER_UNAVAILABLE", "x"), 3),
        (Unauthenticated("TOKEN_MISSING", "x"), 4),
        (Forbidden("ROLE_MISSING", "x"), 4),
    ],
    ids=str,
)
def test_an_error_has_the_code_of_its_kind(error: StepflowError, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert report(error) == exits.exit_code(error) == code
    assert error.reason in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "flow.yaml", "--input", '{"text": 1}', "-q"], exits.OK),
        (["run", "flow.yaml", "--input", "{}", "-q"], exits.FAILED),
        (["run", "bad.yaml"], exits.FAILED),
        (["validate", "bad.yaml"], exits.FAILED),
        (["run", "flow.yaml", "--input", "{"], exits.USAGE),
        (["run", "flow.yaml", "--input", "missing.json"], exits.USAGE),
        (["run", "flow.yaml", "--set", "nobody.input=1", "--input", "{}"], exits.USAGE),
        (["runs", "show", "last"], exits.USAGE),
        (["cluster", "status", "--server", "127.0.0.1:1"], exits.NOT_REACHED),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_command_ends_with_the_code_of_what_happened(
    arguments: list[str], code: int, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.yaml").write_text("outputs: 1\n")
    assert main(arguments) == code
    assert "Traceback" not in capfd.readouterr().err


def test_a_time_that_is_over_ends_with_124_and_the_way_to_follow_again(capfd: pytest.CaptureFixture[str]) -> None:
    following = Following("127.0.0.1:1", choose_view(str, quiet=True), timeout_s=0.01)

    async def begin(client: Any) -> tuple[str, int]:  # the run never begins
        following.run_id = RUN_ID
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(typer.Exit) as ended:
        follow(following, begin)
    assert ended.value.exit_code == exits.TIMED_OUT
    assert f"stepflow runs watch {RUN_ID} --server 127.0.0.1:1" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, exits.INTERRUPTED), (signal.SIGTERM, exits.TERMINATED)])
def test_a_signal_ends_a_run_with_128_and_its_number(folder: Path, number: signal.Signals, code: int) -> None:
    (folder / "nap.yaml").write_text(
        "name: n\ndescription: d\noutput: {$step: nap}\n"
        "steps: [{id: nap, component: /builtin/sleep, input: {duration_ms: 60000}}]\n"
    )
    command = [sys.executable, "-m", "stepflow.cli", "run", "nap.yaml", "-q"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("run_id: ")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "stepflow resume" in err


def test_the_page_has_the_table() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")
    for code, meaning in exits.MEANINGS.items():
        assert f"| {code} | {meaning} |" in text
