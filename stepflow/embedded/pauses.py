"""The time in which no process drives a local run: a run that is resumed the next day took no day.

- The process that drives a run touches the run's `.lock` file once a second, and at its end.
- The next process adds the time since the last sign of life to the total under `paused/<run_id>`, and partitions carry
  the total in their final status.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.errors import NotFound
from stepflow.journal import read_record
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Put, Txn, keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stepflow.store import Store

BEAT_S = 1.0
"""Interval of the signs of life: a pause is longer than the truth by this at most."""


def last_alive_ms(database: Path) -> int:
    """Return the last sign of life next to a database; 0 without one. Call before opening the database to own it."""
    try:
        return Path(f"{database}.lock").stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0


@asynccontextmanager
async def signs_of_life(database: Path) -> AsyncIterator[None]:
    """Leave signs of life next to an owned database, for the duration of the block."""
    beats = asyncio.create_task(_beat(database), name="signs of life")
    try:
        yield
    finally:
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)
        _touch(database)


async def _beat(database: Path) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        _touch(database)


def _touch(database: Path) -> None:
    with contextlib.suppress(OSError):  # the run is worth more than its duration
        os.utime(f"{database}.lock")


async def count_pause(store: Store, run_id: str, alive_ms: int) -> int:
    """Add the time since `alive_ms` to the pauses of a run, and return their total. Call whenever the run is begun too.

    Raises: StepflowError.
    """
    stored = await store.get(keys.paused(run_id))
    pauses = state_pb2.RunPauses() if stored is None else state_pb2.RunPauses.FromString(stored.value)
    if stored is not None:  # else the run is new, or its last process was of a version that left no signs of life
        with contextlib.suppress(NotFound):
            record = await read_record(store, run_id)
            now_ms = time.time_ns() // 1_000_000
            pauses.total_ms += max(0, now_ms - max(alive_ms, record.created_at_ms))

    await store.txn(Txn((), (Put(keys.paused(run_id), pauses.SerializeToString()),)))
    return pauses.total_ms


__all__ = ["count_pause", "last_alive_ms", "signs_of_life"]
