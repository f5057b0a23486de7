"""The source of `stepflow runs`: the local store or a mesh, behind one protocol.

`stepflow.cli.target` selects it.

A listing comes from `run_list.list_runs`, without pages; or from a mesh's `ListRuns`, in pages.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from stepflow.cli import console, remote
from stepflow.cli.display.outcome import Ended
from stepflow.cli.display.results import StoredResults
from stepflow.cli.display.runs import ShownRun, shown_item
from stepflow.cli.target import choose_target, folder_option, other_targets
from stepflow.cli.wanted_runs import ALL_RUNS
from stepflow.errors import DataLoss, FailedPrecondition, StepflowError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stepflow.cli.display.trees import AnyRun
    from stepflow.cli.target import CliTarget
    from stepflow.cli.wanted_runs import WantedRuns
    from stepflow.client import Client, Run, RunStep
    from stepflow.embedded.runs_folder import LocalRuns
    from stepflow.flow import Redactor
    from stepflow.run.views import StepView


class Source(Protocol):
    """Answers the commands of `stepflow runs`. `text` is a RUN (`stepflow.ids`)."""

    location: str
    """Where the runs are, for messages."""

    def list(self, wanted: WantedRuns, limit: int) -> list[tuple[AnyRun, str]]:
        """Return the newest of the wanted runs, with status."""

    def read(self, text: str, *, steps: bool, results: bool) -> ShownRun:
        """Return a run, with `results` of items and steps. Raises: NotFound, Invalid (an ambiguous prefix)."""

    def ended(self, text: str) -> tuple[Ended, Redactor]:
        """Return an ended run with its results. Raises: FailedPrecondition `RUN_NOT_ENDED`, NotFound, Invalid."""

    def result(self, text: str, item: int) -> tuple[StoredResults, str]:
        """Return the result of an item, to be read while it is written, and the command that prints it.

        Raises: NotFound, Invalid; reading it, also FailedPrecondition (`ITEM_NOT_ENDED`, `ITEM_FAILED`).
        """

    def delete(self, text: str, *, force: bool) -> str:
        """Delete a run that has ended and return the id.

        Raises: FailedPrecondition `RUN_NOT_ENDED`, NotFound, Invalid.
        """

    def signal(self, text: str, signal: Signal) -> tuple[str, str]:
        """Send a run a signal; return the ids of run and signal.

        Raises: FailedPrecondition `RUN_ENDED`, NotFound, Invalid.
        """


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal to send. An empty `signal_id` is replaced by a new id."""

    name: str
    payload: Any
    item: int = 0
    signal_id: str = ""


def choose(server: str | None, store: Path | None, *, quiet: bool = False) -> Source:
    """Return the source that the target rule selects (`stepflow.cli.target`); tell a terminal. Raises: Usage."""
    return source_of(choose_target(server, store, quiet=quiet))


def source_of(target: CliTarget) -> Source:
    """Return the runs of a target."""
    if target.server is not None:
        return RemoteSource(target.server)
    from stepflow.embedded.runs_folder import LocalRuns

    assert target.folder is not None
    return LocalSource(LocalRuns(target.folder, option="" if target.is_usual else f" {target.option}"))


def with_runs(target: CliTarget) -> Iterator[CliTarget]:
    """Yield the other places that have runs, for a message about an empty list."""
    for other in other_targets(target):
        with contextlib.suppress(StepflowError):
            if source_of(other).list(ALL_RUNS, 1):
                yield other


class LocalSource:
    """The runs of a folder."""

    def __init__(self, local: LocalRuns) -> None:
        self.location = str(local.folder)
        self._local = local

    def list(self, wanted: WantedRuns, limit: int) -> list[tuple[AnyRun, str]]:
        from itertools import islice

        from stepflow.cli.run_list import list_runs

        found = (pair for pair in list_runs(self._local, wanted.statuses) if wanted.accepts(*pair))
        return list(islice(found, limit))

    def read(self, text: str, *, steps: bool, results: bool) -> ShownRun:
        import asyncio

        return asyncio.run(self._read(self._local.find(text), steps=steps, results=results))

    async def _read(self, run_id: str, *, steps: bool, results: bool) -> ShownRun:
        from stepflow.cli import stored
        from stepflow.cli.run_list import status_of
        from stepflow.embedded.mesh import reader

        begun = await stored.read_run(self._local, run_id)
        async with self._local.reading(run_id) as store:
            control = reader(store, self._local.blobs())
            run = await control.get_run(run_id)
            return ShownRun(
                run,
                status_of(self._local, run),
                [
                    shown_item(item.item, item.status, item.outcome, result=results)
                    async for item in control.listing.each_item(run_id)
                ],
                await control.steps(run_id, with_results=results, on_incomplete=console.warn) if steps else [],
                begun.redactor,
                self._local.option,
            )

    def ended(self, text: str) -> tuple[Ended, Redactor]:
        import asyncio

        from stepflow.cli import stored

        found = asyncio.run(stored.read_run(self._local, self._local.find(text)))
        if found.ended is None:
            hint = f"continue it with: stepflow resume {found.run_id}{folder_option(self._local.folder)}"
            raise FailedPrecondition("RUN_NOT_ENDED", f"run {found.run_id} has no result yet; {hint}")
        return found.ended, found.redactor

    def result(self, text: str, item: int) -> tuple[StoredResults, str]:
        from stepflow.cli.local_results import results_command, stored_result

        run_id = self._local.find(text)
        stored = StoredResults("completed", lambda _: stored_result(self._local, run_id, item))
        return stored, f"{results_command(self._local, run_id)} --item {item}"

    def delete(self, text: str, *, force: bool) -> str:
        import asyncio

        run_id = self._local.find(text)
        asyncio.run(self._delete(run_id, force=force))
        return run_id

    async def _delete(self, run_id: str, *, force: bool) -> None:
        from stepflow.embedded.mesh import reader
        from stepflow.store.protocol import StoreUnreadable

        try:
            store = await self._local.own(run_id)  # raises while another process drives the run
            try:
                run = await reader(store, self._local.blobs()).get_run(run_id)
            finally:
                await self._local.close(store)
            terminal = run.terminal
        except (DataLoss, StoreUnreadable):
            if not force or self._local.is_driven(run_id):
                raise
            terminal = False
        if not terminal and not force:
            raise FailedPrecondition(
                "RUN_NOT_ENDED",
                f"run {run_id} has not ended: continue it with `stepflow resume {run_id}"
                f"{folder_option(self._local.folder)}`, or delete it with --force",
                run_id=run_id,
            )
        await self._local.blobs().delete_scope(run_id)
        self._local.discard(run_id)

    def signal(self, text: str, signal: Signal) -> tuple[str, str]:
        import asyncio

        run_id = self._local.find(text)
        return run_id, asyncio.run(self._signal(run_id, signal))

    async def _signal(self, run_id: str, signal: Signal) -> str:
        from stepflow.codec import encode
        from stepflow.embedded.mesh import signal_run

        store = await self._local.own(run_id)  # raises while another process drives the run
        try:
            return await signal_run(
                store,
                self._local.blobs(),
                run_id,
                signal.name,
                encode(signal.payload),
                item=signal.item,
                signal_id=signal.signal_id,
            )
        finally:
            await self._local.close(store)


class RemoteSource:
    """The runs of a mesh."""

    def __init__(self, server: str) -> None:
        self.location = f"the mesh at {server}"
        self._server = server

    def list(self, wanted: WantedRuns, limit: int) -> list[tuple[AnyRun, str]]:
        async def read(client: Client) -> list[tuple[AnyRun, str]]:
            listed = client.list_runs(
                statuses=wanted.statuses,
                flow_name=wanted.flow_name,
                created_since_ms=wanted.since_ms,
                page_size=min(limit, 1_000),
                labels=wanted.labels,
            )
            found = (run async for run in listed if wanted.accepts(run, run.status))
            return [(run, run.status) async for run in remote.first(found, limit)]

        return remote.ask(self._server, read)

    def read(self, text: str, *, steps: bool, results: bool) -> ShownRun:
        return remote.ask(self._server, lambda client: self._read(client, text, steps=steps, results=results))

    async def _read(self, client: Client, text: str, *, steps: bool, results: bool) -> ShownRun:
        run = await client.get(await remote.find_run(client, text, self._server))
        items = [
            shown_item(item.item, item.status, remote.outcome_of(item), result=results)
            async for item in client.items(run.run_id)
        ]
        found = client.steps(run.run_id, include_results=results, on_incomplete=console.warn)
        shown = [_step_view(step) async for step in found] if steps else []
        option = f" --server {shlex.quote(self._server)}"
        return ShownRun(run, run.status, items, shown, await remote.redactor(client, run), option)

    def ended(self, text: str) -> tuple[Ended, Redactor]:
        async def work(client: Client) -> tuple[Run, Redactor]:
            run = await client.get(await remote.find_run(client, text, self._server))
            if not run.ended:
                hint = f"follow it with: stepflow runs watch {run.run_id}{remote.server_argument(self._server)}"
                raise FailedPrecondition("RUN_NOT_ENDED", f"run {run.run_id} has no result yet; {hint}")
            return run, await remote.redactor(client, run)

        run, redactor = remote.ask(self._server, work)
        stored = StoredResults(run.status, lambda first: remote.outcomes(self._server, run.run_id, first))
        return Ended(run, stored, remote.results_command(self._server, run.run_id)), redactor

    def result(self, text: str, item: int) -> tuple[StoredResults, str]:
        run_id = remote.ask(self._server, lambda client: remote.find_run(client, text, self._server))
        stored = StoredResults("completed", lambda _: remote.one_result(self._server, run_id, item))
        return stored, f"{remote.results_command(self._server, run_id)} --item {item}"

    def delete(self, text: str, *, force: bool) -> str:
        async def work(client: Client) -> str:
            run_id = await remote.find_run(client, text, self._server)
            if force:
                await client.cancel(run_id)
                await client.wait(run_id, timeout_s=remote.CANCEL_WAIT_S)
            await client.delete(run_id)
            return run_id

        return remote.ask(self._server, work)

    def signal(self, text: str, signal: Signal) -> tuple[str, str]:
        async def work(client: Client) -> tuple[str, str]:
            run_id = await remote.find_run(client, text, self._server)
            sent = client.signal(
                run_id, signal.name, signal.payload, item=signal.item, signal_id=signal.signal_id or None
            )
            return run_id, await sent

        return remote.ask(self._server, work)


def _step_view(step: RunStep) -> StepView:
    from stepflow.run.views import StepView

    return StepView(
        run_id=step.run_id,
        item=step.item,
        step_id=step.step_id,
        step_index=step.step_index,
        component=step.component,
        depth=step.depth,
        status=step.status,
        attempt=step.attempt,
        started_at_ms=step.started_at_ms,
        completed_at_ms=step.completed_at_ms,
        duration_ms=step.duration_ms,
        outcome=remote.outcome_of(step),
        retries=step.retries,
        path=step.path,
        skipped_for=step.skipped_for,
    )
