"""Minutes of mixed calls over every kind of server, with random kills of servers: `make soak MINUTES=10 SEED=1`.

Each caller makes one call after another and checks its outcome: the right output, the requested failure, CANCELLED for
a call that it cancelled, or UNREACHABLE for a call lost with its server. A call without an outcome after `CALL_S_MAX`
is stuck.

At the end everything is closed: no process, task or descriptor may remain, and the memory of this process must be what
it was after the first quarter.

Prints one line with the verdict; the exit code is 1 if a check failed. To add a kind of server, add it to `kinds`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from support import is_alive, server_venv
from support.host_side import Call, MemoryBlobs, report
from support.mesh import children_of
from support.stepflow_servers import KINDS, backend_of

from component_host.backends import make_backend
from stepflow import telemetry
from stepflow.config import config_from_tree
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from component_host.backend import Backend

CALL_S_MAX = 90.0
"""Three starts of a server that fail, and as many pauses: more is stuck."""

CALLERS = 6
"""For each server."""

KILL_S = (1.0, 4.0)
"""Between two kills, from and to."""

CANCELLED_SHARE = 0.02

BLOBS = 500
"""Different ones, so that what is kept here is not taken for a leak."""

MEMORY_GROWTH_MAX = 1.25
MEMORY_GROWTH_BYTES = 24 * 1024**2
"""Growth beyond both is a leak: allocators keep some."""

DESCRIPTORS_GROWTH_MAX = 16
"""Libraries open a few when they are first used."""

END_S = 20.0


def kinds() -> Iterator[tuple[str, Backend]]:
    """Yield a name and a backend for every kind of server there is."""
    for kind in KINDS:
        yield str(kind), backend_of(kind, startTimeout="60s")
    command = str(server_venv(["mcp-server-time"], "mcp-server-time") / "mcp-server-time")
    tree = {
        "plugins": {"time": {"type": "mcp", "command": command, "startTimeout": "60s"}},
        "routes": {"/time": [{"plugin": "time"}]},
    }
    config = config_from_tree(tree, source="soak", base_dir=Path.cwd())
    yield "mcp-stdio", make_backend("time", config, os.environ)


def mixed(blobs: MemoryBlobs, dice: random.Random, number: int) -> tuple[Call, Callable[[Any], bool]]:
    """Return a call to a StepFlow server, and what tells its right outcome."""
    flow = {"steps": [{"id": "s", "component": "/builtin/noop", "input": 1}], "output": {"$step": "s"}}
    done = report("r1", {"outcome": "success", "result": {"y": number}})
    match dice.choices(("add", "echo", "big", "blob", "flow", "fail"), (30, 20, 10, 20, 15, 5))[0]:
        case "add":
            return Call("/add", {"a": number, "b": 1}, blobs=blobs), lambda got: got == {"sum": number + 1}
        case "echo":
            value = {"n": number, "text": "é" * dice.randrange(2_000)}
            return Call("/echo", value, blobs=blobs), lambda got: bool(got == value)
        case "big":
            size = dice.randrange(1 << 18)
            return Call("/big", {"size": size}, blobs=blobs), lambda got: len(got["text"]) == size
        case "blob":
            value = number % BLOBS
            return Call("/blob_roundtrip", {"value": value}, blobs=blobs), lambda got: bool(got["value"] == value)
        case "flow":
            call = Call("/evaluate", {"flow": flow, "input": number % BLOBS}, blobs=blobs, runs=lambda _: done)
            return call, lambda got: got == {"y": number}
    call = Call("/fail", {"text": f"no {number}"}, blobs=blobs)
    return call, lambda got: isinstance(got, Failure) and got.message.endswith(f"no {number}")


def timely(dice: random.Random, number: int) -> tuple[Call, Callable[[Any], bool]]:
    """Return a call to the MCP server, and what tells its right outcome."""
    zone = dice.choice(("UTC", "Europe/Vienna", "Nowhere/Nothing"))
    if zone.startswith("Nowhere"):
        return Call("get_current_time", {"timezone": zone}), lambda got: isinstance(got, Failure)
    return Call("get_current_time", {"timezone": zone}), lambda got: zone in str(got)


class Soak:
    """One campaign."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.seconds = seconds
        self.until = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.numbers = iter(range(1, 1 << 40))
        self.blobs = MemoryBlobs()
        """One store for all calls, as in a mesh: over HTTP a blob request does not name its call."""
        self.seen: set[tuple[int, str]] = set()
        """Every descendant so far, as (pid, start time): pids are reused."""

    async def caller(self, name: str, backend: Backend) -> None:
        dice = random.Random(f"{self.seed} {name} {next(self.numbers)}")
        while time.monotonic() < self.until:
            number = next(self.numbers)
            call, right = timely(dice, number) if name.startswith("mcp") else mixed(self.blobs, dice, number)
            backend.execute(call)
            cancelled = dice.random() < CANCELLED_SHARE
            if cancelled:
                await asyncio.sleep(dice.random() * 0.02)
                backend.cancel(call)
            try:
                outcome = await call.outcome(CALL_S_MAX)
            except TimeoutError:
                self.faults.append(f"stuck: {call.request.component} at {name}")
                return
            self.judge(name, call, outcome, cancelled=cancelled, right=right)

    def judge(self, name: str, call: Call, outcome: Any, *, cancelled: bool, right: Callable[[Any], bool]) -> None:
        self.counts["calls"] += 1
        if isinstance(outcome, Failure) and outcome.code is Code.UNREACHABLE:
            self.counts["unreachable"] += 1
        elif cancelled and isinstance(outcome, Failure) and outcome.code is Code.CANCELLED:
            self.counts["cancelled"] += 1
        elif not is_right(right, outcome):
            self.faults.append(f"wrong: {call.request.component} at {name}: {str(outcome)[:300]}")

    async def killer(self) -> None:
        """Kill a process below this one now and then: servers and what they started, but not their guards."""
        while time.monotonic() < self.until:
            await asyncio.sleep(self.dice.uniform(*KILL_S))
            servers = [pid for pid in sorted(children_of(os.getpid())) if "stepflow-guard" not in command_of(pid)]
            self.note_processes()
            if servers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.dice.choice(servers), signal.SIGKILL)
                    self.counts["killed"] += 1

    def note_processes(self) -> None:
        self.seen.update((pid, begun_at(pid)) for pid in children_of(os.getpid()))

    async def run(self) -> str:
        descriptors = descriptors_open()
        backends = dict(kinds())
        started: list[Backend] = []
        memory_before = memory_after = 0
        try:
            for backend in backends.values():
                await backend.start()
                started.append(backend)
            self.until = time.monotonic() + self.seconds
            callers = [
                asyncio.create_task(self.caller(name, backend))
                for name, backend in backends.items()
                for _ in range(CALLERS)
            ]
            killing = asyncio.create_task(self.killer())
            await asyncio.sleep(self.seconds / 4)
            gc.collect()
            memory_before = memory_bytes()
            await asyncio.gather(*callers, killing)
            gc.collect()
            memory_after = memory_bytes()
        finally:
            for backend in started:
                await backend.close()
        return await self.verdict(len(backends), memory_before, memory_after, descriptors)

    async def verdict(self, servers: int, memory_before: int, memory_after: int, descriptors: int) -> str:
        until = time.monotonic() + END_S
        self.note_processes()
        while leftovers := [pid for pid, begun in self.seen if is_alive(pid) and begun_at(pid) == begun]:
            if time.monotonic() > until:
                break
            await asyncio.sleep(0.05)
        tasks = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        open_now = descriptors_open()
        if leftovers:
            self.faults.append("processes left: " + ", ".join(f"{pid} {command_of(pid)[:80]}" for pid in leftovers))
        if tasks:
            self.faults.append(f"tasks left: {tasks[:10]}")
        if open_now > descriptors + DESCRIPTORS_GROWTH_MAX:
            self.faults.append(f"descriptors: {descriptors} before the servers, {open_now} after them")
        if memory_after > max(memory_before * MEMORY_GROWTH_MAX, memory_before + MEMORY_GROWTH_BYTES):
            self.faults.append(f"memory grew from {memory_before:,} to {memory_after:,} bytes")
        if not self.counts["calls"] or not self.counts["killed"]:
            self.faults.append("nothing was called, or nothing killed")
        counts = self.counts
        return (
            f"soak {'FAILED' if self.faults else 'ok'}: {self.seconds / 60:g} min, seed {self.seed}, "
            f"{servers} servers, {counts['calls']:,} calls ({counts['unreachable']:,} lost with their server, "
            f"{counts['cancelled']:,} cancelled), {counts['killed']:,} kills; left: {len(leftovers)} processes, "
            f"{len(tasks)} tasks, {open_now} descriptors ({descriptors} before); "
            f"memory {memory_before / 1024**2:.0f} → {memory_after / 1024**2:.0f} MiB"
        )


def is_right(right: Callable[[Any], bool], outcome: Any) -> bool:
    try:
        return right(outcome)
    except (KeyError, TypeError):  # a failure where an output was expected
        return False


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    except OSError:
        return ""


def begun_at(pid: int) -> str:
    """Return when a process began, in ticks since the machine did; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    options = parser.parse_args()
    telemetry.configure(level="error", format="text")  # that servers end is what this is about
    soak = Soak(options.minutes * 60, options.seed)
    verdict = uvloop.run(soak.run())
    for fault in soak.faults[:20]:
        print(fault, file=sys.stderr)
    print(verdict)
    if soak.faults:
        print(f"again: make soak MINUTES={options.minutes:g} SEED={options.seed}", file=sys.stderr)
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
