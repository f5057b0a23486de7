"""Closed and unwritable stdin, stdout and stderr, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import ROOT

COMBINATIONS = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


def run(program: str, redirections: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, input="words")


REPORT = """
import os, sys
from stepflow.standard_streams import prepare_streams
prepare_streams()
at = [os.readlink(f"/proc/self/fd/{fd}") == "/dev/null" for fd in range(3)]
opened = os.open("/", os.O_RDONLY)
inherited = all(map(os.get_inheritable, range(3)))
read, _, _ = sys.stdin.read(), sys.stdout.write("out"), sys.stderr.write("err")
sys.stdout.flush()
open(os.environ["REPORT"], "w").write(repr((at, opened > 2, inherited, read)))
"""


@pytest.mark.parametrize("redirections", COMBINATIONS)
def test_closed_descriptors_become_the_null_device(redirections: str, tmp_path: object) -> None:
    report = f"{tmp_path}/report"
    done = run(REPORT.replace('os.environ["REPORT"]', repr(report)), redirections)
    closed = [name in redirections.split() for name in ("<&-", ">&-", "2>&-")]
    assert done.returncode == 0, done.stderr
    with open(report, encoding="utf-8") as file:  # noqa: PTH123  # one line
        assert file.read() == repr((closed, True, True, "" if closed[0] else "words"))
    assert done.stdout == ("" if closed[1] else "out")
    assert done.stderr == ("" if closed[2] else "err")


WRITES = """
import sys
from stepflow.standard_streams import StdoutUnwritable, prepare_streams
prepare_streams()
{work}
"""


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>/dev/null"])
def test_text_for_people_that_cannot_be_written_is_dropped(redirection: str) -> None:
    work = "print('lost', file=sys.stderr, flush=True); sys.stderr.write('x' * 100_000); print('kept')"
    done = run(WRITES.replace("{work}", work), redirection)
    assert (done.returncode, done.stdout) == (0, "kept\n")


def test_the_first_failed_write_to_stdout_raises_and_the_exit_does_not_fail_again() -> None:
    work = """
try:
    print("lost", flush=True)
except StdoutUnwritable as error:
    print(error.strerror, file=sys.stderr)
print("dropped")
"""
    done = run(WRITES.replace("{work}", work), ">/dev/full")
    assert (done.returncode, done.stderr) == (0, "No space left on device\n")


def test_output_waits_for_a_pipe_that_another_process_has_set_to_non_blocking_mode() -> None:
    work = "import os; os.set_blocking(1, False); sys.stdout.write('x' * 300_000); sys.stdout.flush()"
    done = run(WRITES.replace("{work}", work), "")
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 300_000, "")
