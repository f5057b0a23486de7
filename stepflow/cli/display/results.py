"""The results of an ended batch of any size, read in parts while they are written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stepflow.cli.display.trees import result_tree

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from stepflow.codec import Json
    from stepflow.errors import Failure

PART_BYTES = 1024 * 1024
PART_ITEMS = 1_000
"""Results read together."""


class BatchResults:
    """The results of a batch, read from their source whenever iterated, outside of an event loop."""

    def __init__(self, status: str, open_outcomes: Callable[[], AsyncGenerator[Json | Failure | None]]) -> None:
        """`open_outcomes` begins to read the outcomes of the items, in order. `status` is the run's."""
        self._status = status
        self._open_outcomes = open_outcomes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with asyncio.Runner() as runner:
            outcomes = self._open_outcomes()
            try:
                while part := runner.run(_part(outcomes)):
                    for outcome in part:
                        yield result_tree(outcome, self._status)
            finally:
                runner.run(outcomes.aclose())


async def _part(outcomes: AsyncGenerator[Json | Failure | None]) -> list[Json | Failure | None]:
    """Return the next outcomes; none at the end."""
    part: list[Json | Failure | None] = []
    size = 0
    async for outcome in outcomes:
        part.append(outcome)
        size += len(getattr(outcome, "raw", b""))
        if size >= PART_BYTES or len(part) == PART_ITEMS:
            break
    return part


__all__ = ["BatchResults"]
