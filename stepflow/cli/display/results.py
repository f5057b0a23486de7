"""The results of an ended run of any number and size, read from their source while they are written."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING

from stepflow.cli.display.trees import result_tree
from stepflow.cli.output import LargeOutcome, LargeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from stepflow.cli.output import FlowResult, Outcomes
    from stepflow.codec import Json
    from stepflow.errors import Failure

PART_BYTES = 1024 * 1024
PART_ITEMS = 1_000
"""Results read together."""


class StoredResults:
    """Results, read from their source whenever iterated, outside of an event loop."""

    def __init__(self, status: str, open_outcomes: Callable[[int], Outcomes]) -> None:
        """`open_outcomes` begins to read the outcomes of the items from one on, in order. `status` is the run's."""
        self._status = status
        self._open_outcomes = open_outcomes

    def __iter__(self) -> Iterator[FlowResult]:
        return self.since(0)

    def since(self, first: int) -> Iterator[FlowResult]:
        """Yield the results of the items from `first` on."""
        with asyncio.Runner() as runner:
            outcomes = self._open_outcomes(first)
            try:
                while part := runner.run(_part(outcomes)):
                    for outcome in part:
                        if not isinstance(outcome, LargeOutcome):
                            yield result_tree(outcome, self._status)
                            continue
                        with closing(_chunks(runner, outcome)) as chunks:
                            yield LargeResult(outcome.text_bytes, chunks)
            finally:
                runner.run(outcomes.aclose())


async def _part(outcomes: Outcomes) -> list[Json | Failure | LargeOutcome | None]:
    """Return the next outcomes; none at the end."""
    part: list[Json | Failure | LargeOutcome | None] = []
    size = 0
    async for outcome in outcomes:
        part.append(outcome)
        size += len(getattr(outcome, "raw", b""))
        # Behind a large one nothing is read: its source closes with the last outcome.
        if size >= PART_BYTES or len(part) == PART_ITEMS or isinstance(outcome, LargeOutcome):
            break
    return part


def _chunks(runner: asyncio.Runner, outcome: LargeOutcome) -> Generator[bytes]:
    chunks = outcome.open()
    chunk = b""

    async def read() -> None:
        # Not as the task's result: the runner formats each result with `repr`, which takes 15 ms for a mebibyte.
        nonlocal chunk
        chunk = await anext(chunks, b"")

    try:
        while True:
            runner.run(read())
            if not chunk:
                return
            yield chunk
    finally:
        runner.run(chunks.aclose())


__all__ = ["StoredResults"]
