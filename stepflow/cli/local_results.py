"""The results of a run of this machine, read from its database: all items in order, or one item of any size."""

from __future__ import annotations

import shlex
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from control_plane.paging import PAGE_SIZE_MAX
from stepflow.cli.display.outcome import Ended, read_already
from stepflow.cli.display.results import StoredResults
from stepflow.cli.output import LargeOutcome
from stepflow.codec import LargeJson
from stepflow.embedded.mesh import reader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from control_plane.control_plane import ControlPlane
    from control_plane.listing import Listing
    from stepflow.cli.output import Numbered, Outcomes
    from stepflow.embedded.mesh import RunView
    from stepflow.embedded.runs_folder import LocalRuns


def results_command(local: LocalRuns, run_id: str) -> str:
    """Return the command that prints the stored results of a run."""
    # With --store always: the command may look in a mesh without.
    return f"stepflow runs show {run_id} --result --store {shlex.quote(str(local.folder))}"


async def read_ended(local: LocalRuns, control: ControlPlane, run: RunView) -> Ended:
    """Return an ended run. The results of a batch, and large ones, are read later, from the database."""
    items = await control.items(run.run_id) if run.items_total <= 1 else []
    read = read_already([item.outcome for item in items], run.status)
    stored = StoredResults(run.status, lambda first: stored_outcomes(local, run.run_id, first))
    return Ended(run, read or stored, results_command(local, run.run_id))


async def stored_outcomes(local: LocalRuns, run_id: str, first: int = 0) -> Outcomes:
    """Yield the outcomes of the items of a run from `first` on, read from its database."""
    async with _listing(local, run_id) as listing, aclosing(numbered(listing, run_id, first)) as items:
        async for _, outcome in items:
            yield outcome


async def numbered(listing: Listing, run_id: str, first: int, size: int = PAGE_SIZE_MAX) -> Numbered:
    """Yield the items of a run from `first` on, with their outcomes; None of an item that has not ended."""
    async with aclosing(listing.each_item(run_id, first, size)) as items:
        async for item in items:
            if isinstance(item.outcome, LargeJson):
                yield item.item, LargeOutcome(item.outcome.text_bytes, partial(_text, listing, run_id, item.item))
            else:
                yield item.item, item.outcome


async def stored_result(local: LocalRuns, run_id: str, item: int) -> Outcomes:
    """Yield the result of an item, read from the database of its run."""
    async with _listing(local, run_id) as listing:
        yield LargeOutcome(0, partial(_text, listing, run_id, item))


@asynccontextmanager
async def _listing(local: LocalRuns, run_id: str) -> AsyncIterator[Listing]:
    store = await local.read(run_id)
    try:
        yield reader(store, local.blobs()).listing
    finally:
        await store.close()


async def _text(listing: Listing, run_id: str, item: int) -> AsyncGenerator[bytes]:
    async with aclosing((await listing.result(run_id, item)).chunks) as chunks:
        async for chunk in chunks:
            yield chunk
