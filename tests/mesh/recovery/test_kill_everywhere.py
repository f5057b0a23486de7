"""A run is killed at every position of its journal, resumed, and compared with an uninterrupted run.

The flow has branches, a map, a retry, a default and a timer. Its server is gated and the window is 1, so the run can
be halted after every flush of the journal, where it gets SIGKILL. Entries of one flush become durable together, so
there is no position between them. The server records its executions in a ledger outside of the run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, is_alive, run_cli, wait_until
from support.truth import Journal, read_journal

from stepflow.embedded.runs_folder import LocalRuns
from stepflow.errors import StepflowError

if TYPE_CHECKING:
    from pathlib import Path

FLOW = """
name: killed
description: branches, a map, a retry, a default, a timer
steps:
  - {id: begin, component: /gated/work, input: {$input: $}}
  - {id: left, component: /gated/work, input: {from: {$step: begin}}}
  - {id: right, component: /gated/work, input: {from: {$step: begin}}}
  - {id: left_too, component: /gated/work, input: {from: {$step: left}}}
  - id: flaky
    component: /gated/flaky
    input: {value: {$step: right}}
    onError: {action: retry, maxRetries: 4, backoff: {type: constant, delayMs: 20}}
  - id: each
    component: /builtin/map
    input:
      items: [10, 20, 30]
      workflow:
        $literal:
          steps:
            - {id: one, component: /gated/work, input: {$input: $}}
            - {id: two, component: /gated/work, input: {$step: one}}
          output: {$step: two}
      after: {$step: right}
  - id: refused
    component: /gated/refuse
    input: {after: {$step: left}}
    onError: {action: useDefault, defaultValue: {instead: 1}}
  - {id: join, component: /gated/work, input: {a: {$step: left_too}, b: {$step: flaky}}}
  - {id: messages, component: /builtin/create_messages, input: {user_prompt: hello, after: {$step: join}}}
  - {id: sum, component: /gated/work, input: [{$step: each}, {$step: refused}, {$step: messages}]}
  - {id: pause, component: /builtin/sleep, input: {duration_ms: 300, after: [{$step: sum}, {$step: join}]}}
  - {id: hold, component: /builtin/wait_for_signal, input: {name: never, timeout_ms: 200, after: {$step: pause}}}
  - {id: end, component: /gated/work, input: {after: {$step: hold}, sum: {$step: sum}, join: {$step: join}}}
output: {end: {$step: end}, flaky: {$step: flaky}, refused: {$step: refused}}
"""

CONFIG = """
plugins:
  gated:
    {type: stepflow, transport: stdio, command: PYTHON, args: [SERVER], env: {GATED_FOLDER: FOLDER, PYTHONPATH: ROOT}}
  builtin: {type: builtin}
routes:
  /gated: [{plugin: gated}]
  /builtin: [{plugin: builtin}]
"""

SHARES = 4
"""The positions are spread over as many tests, so that several processes can share them."""

POSITIONS_MIN = 19
"""Executions of the flow without a crash: one flush each, at least."""


class Place:
    """A folder with the flow, its config, the ledger and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.local = LocalRuns(folder / ".stepflow")
        folder.mkdir()
        (folder / "flow.yaml").write_text(FLOW)
        server = ROOT / "tests" / "data" / "servers" / "gated.py"
        config = CONFIG.replace("PYTHON,", f"{sys.executable},").replace("SERVER", str(server))
        config = config.replace("GATED_FOLDER: FOLDER", f"GATED_FOLDER: {folder}").replace("ROOT", str(ROOT))
        (folder / "stepflow-config.yml").write_text(config)

    def allow(self, executions: float) -> None:
        new = self.folder / "allowed.new"
        new.write_text(str(executions))
        new.replace(self.folder / "allowed")

    def ledger(self) -> list[tuple[str, int]]:
        try:
            lines = (self.folder / "ledger").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(key, int(attempt)) for key, attempt in map(str.split, lines)]

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stepflow.cli", "run", "--flow", "flow.yaml", "--input-json", '{"x": 1}']
        with (self.folder / "stderr").open("wb") as stderr:
            return subprocess.Popen(
                [*command, "--max-concurrency", "1", "--quiet"],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )

    def await_execution(self, number: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until that many executions have begun, or the process has ended."""
        wait_until(lambda: process.poll() is not None or len(self.ledger()) >= number, f"execution {number} begins")

    def resume(self) -> Any:
        done = run_cli(["resume", "--quiet", *self.local.run_ids()], cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def journal(self) -> Journal:
        """Read the journal of the only run as it is now."""
        run_ids = self.local.run_ids()
        if not run_ids:
            return Journal("")
        try:
            return asyncio.run(self._read_journal(run_ids[0]))
        except StepflowError:  # not submitted yet
            return Journal("")

    async def _read_journal(self, run_id: str) -> Journal:
        store = await self.local.read(run_id)
        try:
            return await read_journal(store, self.local.blobs(), run_id)
        finally:
            await store.close()


def without_run_id(pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(key.partition("/")[2], attempt) for key, attempt in pairs]


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run."""

    result: Any
    boundaries: list[int]
    ledger: list[tuple[str, int]]
    executions_by: list[int]
    """For each boundary: how many executions must be let through to get there."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Run the flow step by step, and note how far the journal gets with each execution."""
    place = Place(tmp_path_factory.mktemp("reference") / "place")
    place.allow(0)
    process = place.start()
    needed: dict[int, int] = {}
    try:
        executions = 0
        while process.poll() is None:
            place.await_execution(executions + 1, process)
            for boundary in place.journal().boundaries:
                needed.setdefault(boundary, executions)
            executions += 1
            place.allow(executions)
        stdout = process.communicate(timeout=10)[0]
        assert process.returncode == 0, (place.folder / "stderr").read_text()
    finally:
        process.kill()
        process.wait()
    for boundary in (boundaries := place.journal().boundaries):
        needed.setdefault(boundary, executions)
    return Reference(
        json.loads(stdout), boundaries, without_run_id(place.ledger()), [needed[boundary] for boundary in boundaries]
    )


def test_the_flow_is_what_the_kills_are_meant_for(reference: Reference) -> None:
    assert reference.result["outcome"] == "success"
    assert len(reference.boundaries) >= POSITIONS_MIN
    assert [attempt for key, attempt in reference.ledger if key.endswith("/flaky")] == [1, 2, 3]
    assert sum(key.endswith(("/one", "/two")) for key, _ in reference.ledger) == 6


@pytest.mark.parametrize("share", range(SHARES))
def test_a_run_killed_at_any_journal_position_ends_as_if_nothing_had_happened(
    share: int, reference: Reference, tmp_path: Path
) -> None:
    for position in range(share, len(reference.boundaries), SHARES):
        kill_and_resume(Place(tmp_path / str(position)), position, reference)


def kill_and_resume(place: Place, position: int, reference: Reference) -> None:
    target = reference.boundaries[position]
    place.allow(reference.executions_by[position])
    process = place.start()
    try:
        wait_until(
            lambda: place.journal().length >= target, f"position {position}: {target} entries are in the journal"
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    at_kill = place.journal()
    before = place.ledger()
    place.allow(1_000_000)
    result = place.resume()
    after = place.ledger()
    again = [line for line in after[len(before) :] if line[0] in at_kill.completed or line in at_kill.attempts]
    assert again == [], f"killed after entry {at_kill.length}: journaled, and executed once more"
    assert result == reference.result, f"killed after entry {at_kill.length}"
    assert {key for key, _ in without_run_id(after)} == {key for key, _ in reference.ledger}
    assert not is_alive(process.pid)
