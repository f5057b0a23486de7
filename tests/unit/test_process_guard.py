"""The process guard. A SIGKILLed supervisor is tested in `dev/test_service_process.py`."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from stepflow.process_guard import ProcessGuard


@pytest.fixture
def group() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group of its own."""
    process = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def test_a_released_guard_exits_and_leaves_the_group_alone(group: subprocess.Popen[bytes]) -> None:
    guard = ProcessGuard(group.pid)
    guard.release()
    guard.release()
    guard.wait()
    assert group.poll() is None


def test_a_guard_whose_supervisor_is_gone_ends_the_group(group: subprocess.Popen[bytes]) -> None:
    guard = ProcessGuard(group.pid)
    guard._pipe.close()  # what the system does to the pipe of a dead supervisor
    assert group.wait(timeout=10) == -15
    guard.wait()
