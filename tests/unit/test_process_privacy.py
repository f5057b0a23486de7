"""An undumpable process tells its children nothing: neither environment nor memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
from support import ROOT

from stepflow.errors import Invalid
from stepflow.process_privacy import SWITCH, apply_switch

VALUE = "known-to-the-host-only"

CHILD = """
import os
def tried(path):
    try:
        with open(f"/proc/{os.getppid()}/{path}", "rb") as file:
            return repr(file.read(100_000)) if path == "environ" else "open"
    except OSError as error:
        return f"errno {error.errno}"
print(tried("environ"), tried("mem"), os.access("/proc/self/environ", os.R_OK), flush=True)
"""

PLAIN = f"""
import subprocess, sys
from stepflow.process_privacy import apply_switch
apply_switch()
subprocess.run([sys.executable, "-c", {CHILD!r}], env={{}})
"""

COMMAND = f"""
import subprocess, sys
from stepflow.cli import __main__ as cli
from stepflow.cli.app import app

@app.command("look")
def look() -> None:
    subprocess.run([sys.executable, "-c", {CHILD!r}], env={{}})

cli.main(["look"])
"""

SERVICE = f"""
import os, signal, subprocess, sys
from contextlib import asynccontextmanager
from stepflow.rpc import process

@asynccontextmanager
async def serve(options):
    subprocess.run([sys.executable, "-c", {CHILD!r}], env={{}})
    os.kill(os.getpid(), signal.SIGTERM)
    yield

process.run(process.parser("x", 1, "x"), serve, ["--etcd", "none:1", "--blobs", "none"])
"""


def without_capabilities() -> None:
    """Drop the rights of root, which may look into every process. No effect for other users."""
    prctl = ctypes.CDLL(None).prctl
    for capability in range(64):
        prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def told_by(script: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "THE_KEY": VALUE, **environ},
        preexec_fn=without_capabilities,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and prctl are Linux")
@pytest.mark.parametrize("script", [PLAIN, COMMAND, SERVICE], ids=["plain", "command", "service"])
def test_a_child_reads_neither_environment_nor_memory_of_an_undumpable_process(script: str) -> None:
    assert told_by(script, **{SWITCH: "1"}).split() == ["errno", "13", "errno", "13", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and prctl are Linux")
def test_without_the_switch_a_child_can_read_both() -> None:
    for value in ("", "0"):
        told = told_by(PLAIN, **{SWITCH: value})
        assert VALUE in told


def test_an_unknown_value_of_the_switch_is_an_error() -> None:
    with pytest.raises(Invalid, match="1 or 0") as caught:
        apply_switch({SWITCH: "yes"})
    assert caught.value.reason == "UNDUMPABLE_INVALID"
