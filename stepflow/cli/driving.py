"""Driving one run on this machine to its end, in an embedded mesh over the run's database.

- Component servers start first. If a server fails to start, nothing is submitted and no database is left behind.
- SIGINT, SIGTERM and SIGHUP stop the run at once: servers end, the journal stays, the run can be resumed. After a
  second signal the process exits without waiting for the servers; their guards end the servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from stepflow.cli import console
from stepflow.cli.display.streamed import CHUNK_ITEMS, LOOK_S
from stepflow.cli.display.texts import duration
from stepflow.cli.interruptible import Interrupted, run_interruptibly
from stepflow.cli.local_results import numbered, read_ended
from stepflow.cli.target import folder_option
from stepflow.config import KEEP_EVERYTHING, BuiltinPlugin, MockPlugin
from stepflow.embedded.examine import close_ended
from stepflow.embedded.folder_retention import apply_retention
from stepflow.embedded.log_files import RunLogFile
from stepflow.embedded.mesh import Mesh, plugins_for
from stepflow.embedded.pauses import count_pause, last_alive_ms, signs_of_life
from stepflow.embedded.runs_folder import RunLost
from stepflow.errors import NotFound, StepflowError
from stepflow.journal import read_record
from stepflow.log_lines import StepLog

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from component_host.backend import BackendListing
    from component_host.logged_lines import LoggedLines
    from stepflow.cli.display.outcome import Ended
    from stepflow.cli.display.streamed import ResultStream
    from stepflow.cli.display.view import View
    from stepflow.cli.output import Numbered
    from stepflow.config import Config
    from stepflow.embedded.mesh import RunRequest, RunView
    from stepflow.embedded.runs_folder import LocalRuns
    from stepflow.flow import Flow, Redactor
    from stepflow.store.blobs import BlobStore
    from stepflow.store.sqlite.store import SqliteStore

START_NOTICE_S = 1.0
"""A start of servers that takes longer is announced."""

BLOBS_AWAY_S = 5.0
"""How long a run waits for blobs that cannot be written or read for another reason than a full disk."""

_T = TypeVar("_T")


@dataclass(slots=True)
class Job:
    """A run to drive. `flow` has its overrides applied. Without a `request`, the run is in the store already.

    `inputs` are those of the request. `check` refuses the run by the lists of the started servers.
    """

    local: LocalRuns
    run_id: str
    config: Config
    flow: Flow
    redactor: Redactor
    view: View
    request: RunRequest | None = None
    inputs: Iterable[bytes] = ()
    check: Callable[[Mapping[str, BackendListing]], None] | None = None
    stream: ResultStream | None = None
    """Writes the results of a batch while it runs."""
    submitted: bool = field(default=False, init=False)


def drive(job: Job) -> Ended:
    """Drive the run to its end.

    Raises:
        StepflowError: the run could not begin, and nothing of it is left.
        typer.Exit: the run has begun and cannot continue (1), or a signal has stopped it (128 + signal). The error and
            the command to resume the run have been printed.
    """
    job.submitted = job.request is None
    try:
        return run_interruptibly(_drive(job), job.view.end)
    except Interrupted as interrupted:
        console.say(resume_hint(job.local, job.run_id) if job.submitted else "stopped before the run began")
        raise typer.Exit(128 + interrupted.signum) from None
    except StepflowError as error:
        if not job.submitted:
            raise
        console.error(error)
        console.say(resume_hint(job.local, job.run_id))
        raise typer.Exit(console.EXIT_FAILED) from None


def retain(job: Job) -> None:
    """Remove old runs from the folder as the configuration demands. Call once the results of the run were printed."""
    if job.config.retention != KEEP_EVERYTHING:
        asyncio.run(apply_retention(job.local, job.config.retention, lambda error: console.warn(error.message)))


def resume_hint(local: LocalRuns, run_id: str) -> str:
    """Return the message with the command to resume a run."""
    return f"run {run_id} is not finished; continue it with: stepflow resume {run_id}{folder_option(local.folder)}"


async def _drive(job: Job) -> Ended:
    """Open the database, start the mesh, drive the run, and close both."""
    local, database = job.local, job.local.database(job.run_id)
    alive_ms = last_alive_ms(database)
    store = await (local.create(job.run_id) if job.request is not None else local.own(job.run_id))
    run: RunView | None = None

    try:
        async with signs_of_life(database):
            blobs = local.blobs()
            paused_ms = await count_pause(store, job.run_id, alive_ms)
            log_file = RunLogFile(local.component_log(job.run_id))
            mesh = Mesh(store, blobs, job.config, plugins=_plugins(job), on_log=partial(_take_log, job, log_file))
            mesh.leave_out(paused_ms)

            try:
                await _start_plugins(mesh)
                if job.check is not None:
                    job.check(mesh.host.plugins.listings())
                run, ended = await _unless_stuck(_run(mesh, job), mesh, store, blobs, job.run_id)
            finally:
                job.view.end()
                await mesh.close()
                log_file.close()
        return ended

    finally:
        await (local.close(store) if run is None else close_ended(local, store, run))
        await _discard_unless_submitted(job)


def _take_log(job: Job, file: RunLogFile, logged: LoggedLines) -> None:
    """Keep log lines, and show those that were written while the plugin executed calls."""
    file.write(logged)
    origin = logged.origin
    if origin.executing:
        job.view.on_log(
            StepLog(
                run_id=origin.run_id,
                item=origin.item,
                step_id=origin.step_id or origin.plugin,
                step_index=origin.step_index,
                component=origin.component,
                depth=origin.depth,
                attempt=origin.attempt,
                lines=logged.lines,
                dropped=logged.dropped,
            )
        )


async def _unless_stuck(
    work: Coroutine[Any, Any, _T], mesh: Mesh, store: SqliteStore, blobs: BlobStore, run_id: str
) -> _T:
    """Await the work, unless the run can make no progress: the disk refuses writes, or the executor abandoned the run.

    Raises: the error of the store, of the blobs or of the executor; the errors of `work`.
    """
    loop = asyncio.get_running_loop()
    stuck: asyncio.Future[_T] = loop.create_future()
    patience: list[asyncio.TimerHandle] = []

    def give_up(error: Exception) -> None:
        if not stuck.done():
            stuck.set_exception(error)

    def abandoned(abandoned_id: str, error: StepflowError) -> None:
        if abandoned_id == run_id:
            give_up(error)

    def blobs_refused(error: StepflowError | None) -> None:
        while patience:
            patience.pop().cancel()
        if error is not None:  # a full disk is not waited for: it stays full while the command runs
            pause_s = 0.0 if error.reason in ("BLOB_STORE_FULL", "BLOB_STORE_REFUSED") else BLOBS_AWAY_S
            patience.append(loop.call_later(pause_s, give_up, error))

    store.on_failure = give_up
    blobs.on_trouble = blobs_refused
    mesh.executor.abandoned = abandoned

    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task, stuck), return_when=asyncio.FIRST_COMPLETED)
        return (stuck if stuck.done() else task).result()
    finally:
        if stuck.done():
            stuck.exception()  # retrieved even if the work failed first: asyncio would log it as lost
        stuck.cancel()
        task.cancel()
        blobs_refused(None)
        await asyncio.gather(task, return_exceptions=True)


async def _discard_unless_submitted(job: Job) -> None:
    """Remove the database if no run is in it. Reads the database: an interrupted submission may have stored the run."""
    if job.submitted:
        return

    try:
        store = await job.local.read(job.run_id)
        try:
            await read_record(store, job.run_id)
        finally:
            await store.close()
    except (NotFound, RunLost):
        job.local.discard(job.run_id)
        with contextlib.suppress(StepflowError):  # inputs that stay do no harm
            await job.local.blobs().delete_scope(job.run_id)
    except StepflowError:
        return  # unreadable: `stepflow runs list` reports the file
    else:
        job.submitted = True


def _plugins(job: Job) -> set[str]:
    """Return the plugins of the flow, and all builtin and mock plugins (any component may call these)."""
    free = {name for name, plugin in job.config.plugins.items() if isinstance(plugin, (BuiltinPlugin, MockPlugin))}
    return plugins_for(job.config, job.flow) | free


async def _start_plugins(mesh: Mesh) -> None:
    """Start the servers.

    Raises: StepflowError, a server failed to start; errors of further servers are printed before.
    """
    begun_at = time.monotonic()
    announced = False

    def announce() -> None:
        nonlocal announced
        announced = True
        console.say(f"starting {', '.join(sorted(mesh.starting))} …")

    notice = asyncio.get_running_loop().call_later(START_NOTICE_S, announce)
    try:
        failures = await mesh.start_plugins()
    finally:
        notice.cancel()

    if failures:
        *others, last = failures.values()
        for failure in others:
            console.error(failure)
        raise last

    if announced:
        console.say(f"started after {duration(int((time.monotonic() - begun_at) * 1000))}")


async def _run(mesh: Mesh, job: Job) -> tuple[RunView, Ended]:
    """Submit a new run, drive the run, and return the run and its outcome."""
    run_id, view = job.run_id, job.view
    mesh.executor.listen(run_id, view.on_event)
    await mesh.start_services()
    if job.request is not None:
        await mesh.submit(job.request, job.inputs)
        job.submitted = True

    console.say(f"run_id: {run_id}")
    view.begin((await mesh.control.get_run(run_id)).items_total)
    helpers = [asyncio.create_task(_tick(mesh, job))]
    if job.stream is not None:
        helpers.append(asyncio.create_task(_write_results(mesh, job, job.stream)))
    try:
        run = await mesh.control.wait(run_id)
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)

    view.tick(run.items_total)
    if job.stream is not None:
        await job.stream.drain(_reader(mesh, run_id), run.items_total)
    return run, await read_ended(job.local, mesh.control, run)


async def _write_results(mesh: Mesh, job: Job, stream: ResultStream) -> None:
    """Write the results of a batch as its items end, until cancelled."""
    from stepflow.embedded.ended_items import EndedItems

    ended = EndedItems(mesh.executor, job.run_id)
    if job.request is None:  # some have ended before: only the store knows which
        stream.note(range((await mesh.control.get_run(job.run_id)).items_total))
    while True:
        stream.note(ended.take())
        await stream.step(_reader(mesh, job.run_id))
        await asyncio.sleep(LOOK_S)


def _reader(mesh: Mesh, run_id: str) -> Callable[[int], Numbered]:
    return lambda first: numbered(mesh.control.listing, run_id, first, CHUNK_ITEMS)


async def _tick(mesh: Mesh, job: Job) -> None:
    """Redraw the view at `view.interval_s`."""
    while True:
        await asyncio.sleep(3600 if job.view.interval_s is None else job.view.interval_s)
        run = await mesh.control.get_run(job.run_id)
        job.view.tick(run.items_total - run.items_running + mesh.executor.items_ended(job.run_id))
