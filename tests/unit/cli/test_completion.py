"""Completion by the shell: what is offered, and that a failure offers nothing and says nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import ROOT
from support.runs_folder import CountingFolder

from stepflow.cli.__main__ import main
from stepflow.cli.completion import SHELLS

if TYPE_CHECKING:
    from pathlib import Path

STEPFLOW = f"{sys.executable} -m stepflow.cli"

CONFIG = """
plugins:
  builtin: {type: builtin}
  fake:
    type: mock
    components:
      /greet: {input_schema: {}, output_schema: {}, behaviors: {}}
  tools: {type: mcp, transport: stdio, command: no-such-program}
routes:
  /builtin: [{plugin: builtin}]
  /fake: [{plugin: fake}]
  /tools: [{plugin: tools}]
"""


def complete(folder: Path, *words: str, shell: str = "bash", **environ: str) -> subprocess.CompletedProcess[str]:
    """Ask for completions of the last word as the shell's script does."""
    line = " ".join(["stepflow", *words])
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words)), "_TYPER_COMPLETE_ARGS": line}
    asked |= {"_STEPFLOW_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return subprocess.run(
        [sys.executable, "-m", "stepflow.cli"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **asked, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def offered(folder: Path, *words: str, **environ: str) -> list[str]:
    done = complete(folder, *words, **environ)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_is_offered_commands(shell: str, tmp_path: Path) -> None:
    done = complete(tmp_path, "comple", shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "completion" in done.stdout


def test_run_ids_of_the_folder_are_offered_newest_first_and_last(tmp_path: Path) -> None:
    local = CountingFolder(tmp_path / ".stepflow")
    older, newer = asyncio.run(local.put()), asyncio.run(local.put())
    assert offered(tmp_path, "runs", "delete", "") == ["last", newer, older]
    assert offered(tmp_path, "runs", "delete", older[:-1]) == [older]
    assert offered(tmp_path, "runs", "delete", "l") == ["last"]


def test_component_paths_come_from_builtins_mocks_and_flows_without_starting_a_server(tmp_path: Path) -> None:
    (tmp_path / "stepflow-config.yml").write_text(CONFIG)
    (tmp_path / "flow.yaml").write_text("steps:\n- id: a\n  component: /tools/search\n")
    (tmp_path / "flow.json").write_text('{"steps": [{"id": "a", "component": "/tools/fetch"}]}')
    assert offered(tmp_path, "call", "/fa") == ["/fake/greet"]
    assert offered(tmp_path, "call", "/tools/") == ["/tools/fetch", "/tools/search"]
    assert "/builtin/openai" in offered(tmp_path, "call", "/b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("plugins: [", ("call", "/b")),
        ("", ("runs", "watch", "0")),
        ("", ("flows", "show", "g")),
        ("", ("components", "list", "--plugin", "no")),
    ],
    ids=["broken config", "no mesh for runs", "no mesh for flows", "no such plugin"],
)
def test_a_failure_offers_nothing_and_says_nothing(content: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "stepflow-config.yml").write_text(content)
    done = complete(tmp_path, *words, STEPFLOW_SERVER="localhost:1")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_plugins_come_from_the_configuration_if_no_mesh_answers(tmp_path: Path) -> None:
    (tmp_path / "stepflow-config.yml").write_text(CONFIG)
    assert offered(tmp_path, "components", "list", "--plugin", "", STEPFLOW_SERVER="localhost:1") == [
        "builtin",
        "fake",
        "tools",
    ]


def test_the_script_of_bash_completes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    program = tmp_path / "stepflow"
    program.write_text(f'#!/bin/sh\nexec {STEPFLOW} "$@"\n')
    program.chmod(0o755)
    script = 'eval "$(stepflow completion bash)"; COMP_WORDS=(stepflow flo); COMP_CWORD=1; '
    script += 'complete -p stepflow; _stepflow_completion stepflow; printf "%s\\n" "${COMPREPLY[@]}"'
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([bash, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["complete -o default -F _stepflow_completion stepflow", "flows"]
    assert done.stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_are_printed(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_STEPFLOW_COMPLETE=complete_" in capfd.readouterr().out


def test_an_unknown_shell_is_a_wrong_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fsh"]) == 2
    assert "did you mean `fish`" in capfd.readouterr().err
