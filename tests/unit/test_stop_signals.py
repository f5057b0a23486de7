"""Requests to stop by signals, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from support import ROOT

PROGRAM = """
import asyncio, os, signal, sys
from stepflow import stop_signals
from stepflow.stop_signals import StopSignals

stop_signals.REPEAT_S = float(sys.argv[2])

async def main():
    loop = asyncio.get_running_loop()
    requests = []
    wanted = int(sys.argv[3])
    with StopSignals(loop, lambda number, request: requests.append((number, request))):
        while len(requests) < wanted:
            for name in sys.argv[1].split(","):
                os.kill(os.getpid(), getattr(signal, name))
            await asyncio.sleep(0)
    print(requests, flush=True)

{loop}
for name in sys.argv[1].split(","):
    os.kill(os.getpid(), getattr(signal, name))
print("ended in order", flush=True)
"""

LOOPS = {
    "asyncio": "asyncio.run(main())",
    "uvloop": "import uvloop; asyncio.Runner(loop_factory=uvloop.new_event_loop).__enter__().run(main())",
}


def stopped(names: str, *, repeat_s: float, requests: int, loop: str = "asyncio") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("{loop}", LOOPS[loop])
    command = [sys.executable, "-c", program, names, str(repeat_s), str(requests)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("loop", sorted(LOOPS))
@pytest.mark.parametrize("names", ["SIGTERM,SIGTERM", "SIGINT,SIGINT,SIGINT", "SIGHUP,SIGHUP", "SIGHUP,SIGTERM,SIGINT"])
def test_signals_that_follow_at_once_are_one_request_until_the_very_end(names: str, loop: str) -> None:
    done = stopped(names, repeat_s=60, requests=1, loop=loop)
    number = getattr(signal, names.split(",", maxsplit=1)[0]).value
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"[({number}, 1)]\nended in order\n"


def test_a_signal_while_the_interpreter_ends_does_not_kill_it() -> None:
    last = """
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM, write=os.write):
        kill(pid, number)
        write(1, b"the very end")
import _signal
_signal.last = Last()  # freed when the handlers are gone
"""
    program = PROGRAM.replace("{loop}", LOOPS["asyncio"]) + last
    command = [sys.executable, "-c", program, "SIGTERM", "60", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("the very end")


def test_a_later_signal_is_another_request_and_after_the_loop_it_ends_the_process() -> None:
    done = stopped("SIGTERM", repeat_s=0, requests=3)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == "[(15, 1), (15, 2), (15, 3)]\n"


def test_handlers_go_with_the_block_if_no_signal_has_come() -> None:
    done = stopped("SIGTERM", repeat_s=60, requests=0)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "[]\n"


def test_an_ignored_sighup_stays_ignored() -> None:
    program = PROGRAM.replace("{loop}", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + LOOPS["asyncio"])
    command = [sys.executable, "-c", program, "SIGHUP,SIGTERM", "60", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[0] == "[(15, 1)]"
