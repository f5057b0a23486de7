"""The source of `stepflow runs logs`: the folder of a local run, or a mesh."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stepflow.cli import remote
from stepflow.cli.display.follow import step_log
from stepflow.cli.target import choose_target
from stepflow.log_lines import LogLine, StepLog, level_of
from stepflow.step_path import parse_step_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepflow.client import Client, ClientEvent
    from stepflow.embedded.log_files import StoredLine
    from stepflow.embedded.runs_folder import LocalRuns
    from stepflow.flow import Redactor

POLL_S = 0.2
"""Interval of reading the log of a local run that goes on."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Log lines of a step. `of_root`: of a step of the run itself, not of a sub-run."""

    log: StepLog
    of_root: bool


@dataclass(frozen=True, slots=True)
class StepFilter:
    """The steps whose lines are wanted. None: all."""

    step_id: str | None = None
    item: int | None = None

    @classmethod
    def of(cls, text: str | None) -> StepFilter:
        """Read a STEP (`stepflow.step_path`): its step id, and the item of a batch. Raises: Invalid."""
        if text is None:
            return cls()
        path = parse_step_path(text)
        return cls(path.step_id, path.item)

    def matches(self, entry: LogEntry) -> bool:
        if self.step_id is None:
            return True
        if not entry.log.run_id or entry.log.step_id != self.step_id:
            return False
        return self.item is None or not entry.of_root or entry.log.item == self.item


class RunLog(Protocol):
    """Reads the log of one run."""

    run_id: str
    batch: bool
    redactor: Redactor

    def read(self, show: Callable[[LogEntry], None], *, follow: bool) -> None:
        """Pass the lines on, with `follow` until the run ends. Raises: StepflowError."""


def open_logs(server: str | None, store: Path | None, text: str) -> RunLog:
    """Find the run that RUN names, in the target of the command. Raises: NotFound, Invalid (ambiguous), Usage."""
    target = choose_target(server, store)
    if target.server is not None:
        return _MeshLogs(target.server, text)
    from stepflow.embedded.runs_folder import LocalRuns

    assert target.folder is not None
    return _LocalLogs(LocalRuns(target.folder), text)


class _LocalLogs:
    """The log of a run of this machine."""

    def __init__(self, local: LocalRuns, text: str) -> None:
        import asyncio

        from stepflow.cli.stored import read_run

        self._local = local
        self.run_id = local.find(text)
        run = asyncio.run(read_run(local, self.run_id))
        self.redactor = run.redactor
        self.batch = bool(run.labels.get("batch"))

    def read(self, show: Callable[[LogEntry], None], *, follow: bool) -> None:
        from stepflow.embedded.log_files import StoredLogReader

        reader = StoredLogReader(self._local.component_log(self.run_id))
        while True:
            goes_on = follow and self._local.is_driven(self.run_id)  # before the reading, which is then complete
            for line in reader.new_lines():
                show(self._entry(line))
            if not goes_on:
                return
            time.sleep(POLL_S)

    def _entry(self, line: StoredLine) -> LogEntry:
        log = StepLog(
            run_id=line.run_id,
            item=line.item,
            step_id=line.step_id or line.plugin,
            step_index=0,
            component=line.component,
            depth=int(line.run_id != self.run_id),
            attempt=line.attempt,
            lines=(LogLine(line.at_ms, level_of(line.level), line.text),),
            dropped=line.dropped,
        )
        return LogEntry(log, line.run_id == self.run_id)


class _MeshLogs:
    """The log of a run of a mesh."""

    def __init__(self, server: str, text: str) -> None:
        async def find(client: Client) -> tuple[str, bool, Redactor]:
            run = await client.get(await remote.find_run(client, text, server))
            batch = bool(run.labels.get("batch", run.items_total != 1))
            return run.run_id, batch, await remote.redactor(client, run)

        self._server = server
        self.run_id, self.batch, self.redactor = remote.ask(server, find)

    def read(self, show: Callable[[LogEntry], None], *, follow: bool) -> None:
        async def pass_on(client: Client) -> None:
            told: set[tuple[str, int, str, int]] = set()
            failed: list[ClientEvent] = []
            async for event in client.watch(self.run_id, include_logs=True, until_now=not follow):
                if event.kind == "step_logged":
                    told.add(_attempt_of(event))
                    show(LogEntry(step_log(event), event.run_id == self.run_id))
                elif event.kind == "step_failed" and event.lines:
                    failed.append(event)
                elif event.kind == "run_ended":
                    break

            # The lines of failures that hosts do not have any more.
            for event in failed:
                if _attempt_of(event) not in told:
                    show(LogEntry(step_log(event), event.run_id == self.run_id))

        remote.ask(self._server, pass_on)


def _attempt_of(event: ClientEvent) -> tuple[str, int, str, int]:
    return event.run_id, event.item, event.step_id, event.attempt
