"""The results of a batch, written while it runs: in the order of the inputs, or as the items end.

- `note` names items that may have ended; `step` reads them from their source and writes those that have.
- What is written is durable in the run's store before. After Ctrl-C, nothing that was read is lost.
- A file is written in place, item by item: it holds what has ended so far.
- A write that fails does not end the run: no more is written, and `finish` raises the error.
- A reader that is slow delays the results, never the run: stdout and files are written in a thread.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from contextlib import aclosing, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from stepflow.cli import console
from stepflow.cli.display.failures import FailedItems
from stepflow.cli.display.trees import result_tree
from stepflow.cli.output import WRITE_BYTES, LargeOutcome, ResultFormat, YamlTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import BinaryIO

    from stepflow.cli.display.view import View
    from stepflow.cli.output import FlowResult, Numbered
    from stepflow.codec import Json
    from stepflow.errors import Failure

LOOK_S = 0.2
"""Pause between two looks at what has ended."""

CHUNK_ITEMS = 64
"""Items read together, of those that ended out of order: those of a partition."""


class ResultStream:
    """The results of one batch. `view` is told to make room for them on a terminal."""

    def __init__(self, output: Path | None, view: View, *, ordered: bool) -> None:
        self.failed = FailedItems()
        self._output = output
        self._view = view
        self._ordered = ordered
        self._format = ResultFormat.of(output)
        self._file: BinaryIO | None = None
        self._next = 0
        """In order: the first item that is not written."""
        self._written: set[int] = set()
        """Not in order: the items that are written."""
        self._noted: set[int] = set()
        self._waiting = bytearray()
        """Texts of results that `_next` and `_written` count already."""
        self._error: OSError | YamlTooLarge | None = None
        self._something = asyncio.Event()

    def note(self, items: Iterable[int]) -> None:
        """Note items that may have ended."""
        self._noted.update(items)
        if self._noted:
            self._something.set()

    async def follow(self, read: Callable[[int], Numbered]) -> None:
        """Write what ends, until cancelled."""
        while self._error is None:
            await self._something.wait()
            self._something.clear()
            await self.step(read)
            await asyncio.sleep(LOOK_S)

    async def step(self, read: Callable[[int], Numbered]) -> None:
        """Write the noted items that have ended; in order: as far as no item is missing."""
        if self._error is not None:
            return
        try:
            await (self._step_in_order(read) if self._ordered else self._step_as_they_end(read))
            await self._flush()
        except (OSError, YamlTooLarge) as error:
            self._error = error
        except asyncio.CancelledError:
            self._flush_now()
            raise

    async def drain(self, read: Callable[[int], Numbered], items_total: int) -> None:
        """Write all that has ended, once the run has ended: before the view shows its last frame."""
        self.note(range(items_total))
        await self.step(read)

    def finish(self, results: Callable[[int], Iterable[FlowResult]]) -> None:
        """Write the rest of an ended batch; `results` yields those from an item on. Raises: OSError, YamlTooLarge."""
        try:
            # 1. What was read before.
            if self._error is not None:
                raise self._error
            self._write_now(self._waiting)

            # 2. The rest, from the first item that is not written.
            first = self._next
            while first in self._written:
                first += 1
            for item, result in enumerate(results(first), first):
                if item not in self._written:
                    self.failed.note(item, result)
                    for part in self._format.texts(result, None if self._ordered else item):
                        self._write_now(part)
                    self._written.add(item)

            if not self._next and not self._written:
                self._write_now(self._format.empty)
        finally:
            self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            self._file.close()

    async def _step_in_order(self, read: Callable[[int], Numbered]) -> None:
        if self._next not in self._noted:
            return
        async with aclosing(read(self._next)) as found:
            async for item, outcome in found:
                if outcome is None:
                    break
                self._noted.discard(item)
                await self._add(item, outcome)
                self._next = item + 1
        if self._next in self._noted:  # it ended while the others were read, or its end is not durable yet
            self._something.set()

    async def _step_as_they_end(self, read: Callable[[int], Numbered]) -> None:
        noted, self._noted = sorted(self._noted - self._written), set()
        behind = 0
        for first in noted:
            if first < behind:
                continue
            behind = first - first % CHUNK_ITEMS + CHUNK_ITEMS
            async with aclosing(read(first)) as found:
                async for item, outcome in found:
                    if item >= behind:
                        break
                    if outcome is not None and item not in self._written:
                        await self._add(item, outcome)
                        self._written.add(item)
        self.note(item for item in noted if item not in self._written)

    async def _add(self, item: int, outcome: Json | Failure | LargeOutcome) -> None:
        number = None if self._ordered else item
        if isinstance(outcome, LargeOutcome):
            await self._flush()
            await self._add_large(outcome, number)
            return

        result = result_tree(outcome, "running")
        self.failed.note(item, result)
        for text in self._format.texts(result, number):
            self._waiting += text
        if len(self._waiting) >= WRITE_BYTES:
            await self._flush()

    async def _add_large(self, outcome: LargeOutcome, number: int | None) -> None:
        head, tail = self._format.around_large(outcome.text_bytes, number)
        with self._view.hidden() if self._on_terminal else nullcontext():
            self._write_now(head)
            async with aclosing(outcome.open()) as chunks:
                async for chunk in chunks:
                    await _in_thread(partial(self._write_now, chunk))
            self._write_now(tail)

    async def _flush(self) -> None:
        part = bytes(self._waiting)
        if not part:
            return
        self._waiting.clear()
        if self._on_terminal:
            if not self._view.print_above(part.decode()):
                self._write_now(part)
        else:
            await _in_thread(partial(self._write_now, part))

    def _flush_now(self) -> None:
        """Write what was read before the cancellation, unless that fails."""
        part = bytes(self._waiting)
        self._waiting.clear()
        try:
            self._write_now(part)
        except OSError as error:
            self._error = error

    def _write_now(self, part: bytes | bytearray) -> None:
        """Raises: OSError."""
        if not part:
            return
        if self._output is None:
            console.out(bytes(part))
            return
        if self._file is None:
            self._file = self._output.open("wb", buffering=0)
            weakref.finalize(self, self._file.close)
        rest = memoryview(part)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]

    @property
    def _on_terminal(self) -> bool:
        """True if the results go to the terminal that shows the view."""
        return self._output is None and sys.stdout.isatty() and sys.stderr.isatty()


async def _in_thread(work: Callable[[], None]) -> None:
    """Run blocking work in a thread that does not keep the process from its end. Raises: the errors of the work."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, error)
        except RuntimeError:  # the loop is closed, and the waiter is gone
            return

    threading.Thread(target=run, daemon=True, name="results").start()
    # A write that has begun is waited for: the next one would overtake it.
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done], timeout=1.0)
        raise


__all__ = ["LOOK_S", "ResultStream"]
