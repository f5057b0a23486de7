"""Ctrl-C while a program imports its modules ends it with 130, and shows no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

SLOW = """
import sys
class Slow:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            print("importing", flush=True)
            import time
            time.sleep(60)
sys.meta_path.insert(0, Slow())
"""
"""Holds the import of a module until a signal comes."""

SCRIPT = Path(sys.executable).parent / "stepflow"


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ([sys.executable, SCRIPT, "--help"], "typer"),
        ([sys.executable, SCRIPT, "--help"], "stepflow.cli.commands.submit"),
        ([sys.executable, "-m", "stepflow.cli", "--help"], "typer"),
        ([sys.executable, "-m", "stepflow.cli", "runs", "list"], "stepflow.cli.sources"),
        ([sys.executable, "-m", "control_plane", "--help"], "stepflow.telemetry"),
        ([sys.executable, "-m", "executor", "--help"], "stepflow.rpc.process"),
        ([sys.executable, "-m", "component_host", "--help"], "asyncio"),
    ],
)
def test_an_interrupt_during_the_imports_of_a_program_ends_it_quietly(
    tmp_path: Path, command: list[str], module: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW.format(module=module))
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, stderr.strip()) == (130, "")
