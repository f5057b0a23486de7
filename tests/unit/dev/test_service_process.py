"""One service process: readiness, supervision, and the end of its process group. The services are shell scripts."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import is_alive, text_of, wait_until, wait_until_async

from stepflow.dev.service_process import Service
from stepflow.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

READY = """echo '{"service": "it", "id": "x", "address": "127.0.0.1:1"}'"""


def service(folder: Path, script: str) -> Service:
    return Service("it", ["/bin/sh", "-c", script], folder / "it.log")


def within(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_a_service_is_ready_when_it_says_where_it_listens(tmp_path: Path) -> None:
    async def work() -> None:
        it = service(tmp_path, f"echo starting; {READY}; exec sleep 100")
        it.start()
        await it.ready(20)
        assert it.address == "127.0.0.1:1"
        assert await it.stop(20)
        assert it.returncode == -signal.SIGTERM

    within(work())


def test_a_service_that_ends_too_early_is_told_with_its_last_words(tmp_path: Path) -> None:
    async def work() -> None:
        it = service(tmp_path, "echo out; echo 'no disk, token=hunter2hunter2' >&2; exit 4")
        it.start()
        with pytest.raises(Unavailable) as caught:
            await it.ready(20)
        assert caught.value.reason == "SERVICE_START_FAILED"
        assert "it ended with code 4" in caught.value.message
        assert "no disk" in caught.value.message
        assert str(tmp_path / "it.log") in caught.value.message

    within(work())


def test_a_service_that_says_nothing_is_given_up_after_a_while(tmp_path: Path) -> None:
    async def work() -> None:
        it = service(tmp_path, "exec sleep 100")
        it.start()
        with pytest.raises(Unavailable, match=r"was not ready after 0\.05 s"):
            await it.ready(0.05)
        await it.stop(20)
        assert not is_alive(it.pid)

    within(work())


def test_the_words_of_an_earlier_run_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    async def work() -> None:
        again = tmp_path / "again"
        it = service(tmp_path, f"[ -e {again} ] && exit 5; {READY}; until [ -e {again} ]; do sleep 0.01; done")
        it.start()
        await it.ready(20)
        again.touch()
        assert await it.exited() == 0
        it.start()
        with pytest.raises(Unavailable, match="ended with code 5"):
            await it.ready(20)

    within(work())


def test_who_does_not_end_in_time_is_killed_with_what_it_started(tmp_path: Path) -> None:
    async def work() -> None:
        pid_file = tmp_path / "pid"
        it = service(tmp_path, f"trap '' TERM; sleep 100 & echo $! > {pid_file}; {READY}; while :; do sleep 1; done")
        it.start()
        await it.ready(20)
        child = int(text_of(pid_file))
        assert not await it.stop(0.05)
        assert it.returncode == -signal.SIGKILL
        await wait_until_async(lambda: not is_alive(child), "its child is gone, too")

    within(work())


def test_what_a_dead_service_has_left_behind_is_ended(tmp_path: Path) -> None:
    async def work() -> None:
        pid_file = tmp_path / "pid"
        it = service(tmp_path, f"sleep 100 & echo $! > {pid_file}; {READY}; exit 1")
        it.start()
        assert await it.exited() == 1
        child = int(text_of(pid_file))
        await wait_until_async(lambda: not is_alive(child), "what it had started is gone")

    within(work())


def test_a_service_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    import subprocess

    pid_file = tmp_path / "pid"
    program = f"""
import asyncio, os, signal
from pathlib import Path
from stepflow.dev.service_process import Service
async def main():
    it = Service("it", ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"], Path({str(tmp_path / "it.log")!r}))
    it.start()
    Path({str(pid_file)!r}).write_text(str(it.pid))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not is_alive(int(text_of(pid_file))), "the guard has ended it", 20)
