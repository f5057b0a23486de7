"""Completion by the shell: what is offered, and that a failure offers nothing and says nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.shell_completion import CompletionItem
from support import ROOT
from support.runs_folder import CountingFolder
from typer._completion_classes import ZshComplete

from stepflow.cli.__main__ import main
from stepflow.cli.completion import SHELLS, silent

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


def ask_silently(offer: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return silent(lambda _ctx, _incomplete: offer)(None, "")  # type: ignore[arg-type]  # the context is not read


@pytest.mark.parametrize(
    "value", ["$(id)", "a;id", "a b", "`id`", "a\nb", "--config=x", "~root", "=ls", "a&", "a'b", 'a"b', "a\\b", "*", ""]
)
def test_a_name_that_a_shell_would_interpret_is_not_offered(value: str) -> None:
    assert ask_silently([(value, "help"), ("/tools/add", "")]) == [("/tools/add", "")]


def test_names_that_shells_take_as_they_are_are_offered() -> None:
    names = ["last", "0198f3ab-0000", "greet@prod-1", "/tools/files/{path}", "größe", "a.b:c+d=e,f%g"]
    assert [value for value, _ in ask_silently([(name, "") for name in names])] == names


def test_help_texts_lose_what_a_shell_would_interpret() -> None:
    ((_, text),) = ask_silently([("a", "x\\$(touch \"p\") `id` 'q'\n\x1b[2J" + "y" * 1_000)])
    assert not set("\\$\"'`\n\x1b") & set(text)
    assert len(text) < 200


def test_zsh_executes_nothing_of_a_description(tmp_path: Path) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh")

    def evaluate(value: str, text: str) -> str:
        action = object.__new__(ZshComplete).format_completion(CompletionItem(value, help=text))
        # `_arguments` evaluates its action in this way.
        script = f"action='{action}'; eval offered\\=\\( $action \\); print -r -- $offered"
        done = subprocess.run([zsh, "-f", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    description = "x\\$(touch executed)"
    evaluate("/tools/add", description)
    assert (tmp_path / "executed").exists(), "zsh evaluates descriptions"

    (tmp_path / "executed").unlink()
    ((value, text),) = ask_silently([("/tools/add", description)])
    assert "/tools/add:x" in evaluate(value, text)
    assert not (tmp_path / "executed").exists()
