"""The memory that one call of an API holds for large values, counted against the budget of its server.

- The first large value of a call waits for memory; the call gets more without waiting (see `ValueBudget.add`).
- The memory is held until the reply is sent.
- After `HELD_S_MAX` the memory is lent to others: a client that stops reading must not hold up the rest.

`hold` and `give_back` find the memory of the running call by themselves, in its tasks, too. Outside of a call, and in
servers without a budget, they do nothing.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX

if TYPE_CHECKING:
    from stepflow.value_budget import ValueBudget

COPIES = 3
"""A value, the message with it, and the message as bytes."""

HELD_S_MAX = 60.0
"""Longest time from the last large value of a call until its memory is lent to others."""


class CallMemory:
    """The memory of one call."""

    __slots__ = ("_admission", "_budget", "_context", "_held", "_timer")

    def __init__(self, budget: ValueBudget, context: Any) -> None:
        """`context`: the call's, from gRPC."""
        self._budget = budget
        self._context = context
        self._held = 0
        self._admission: asyncio.Lock | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def hold(self, size: int) -> None:
        """Hold the memory of a value of `size` bytes; wait for it if the call holds none."""
        if self._admission is None:
            self._admission = asyncio.Lock()
            self._context.add_done_callback(lambda _: self.release())
        async with self._admission:  # tasks of one call must not wait for each other's memory in the queue
            if self._held:
                self._budget.add(COPIES * size)
            else:
                await self._budget.take(COPIES * size)
            self._held += COPIES * size
        self._restart_timer()

    def give_back(self, size: int) -> None:
        """Give back the memory of a value of `size` bytes."""
        size = min(COPIES * size, self._held)
        if size:
            self._held -= size
            self._budget.release(size)

    def release(self) -> None:
        """Give back all memory. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, 0
        if held:
            self._budget.release(held)

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(HELD_S_MAX, self.release)


_current: ContextVar[CallMemory | None] = ContextVar("call_memory", default=None)


def begin_call(budget: ValueBudget, context: Any) -> None:
    """Let the running task, and the tasks that it creates, hold the memory of a call."""
    _current.set(CallMemory(budget, context))


async def hold(size: int = PAYLOAD_BYTES_MAX) -> int:
    """Hold the memory of a value before it is loaded; return the bytes held. Without `size` it is not known."""
    memory = _current.get()
    if memory is None or size <= INLINE_BYTES_MAX:
        return 0
    await memory.hold(size)
    return size


def give_back(size: int) -> None:
    """Give back the memory of values that are needed no more, or are smaller than assumed."""
    memory = _current.get()
    if memory is not None and size > 0:
        memory.give_back(size)


def release() -> None:
    """Give back all memory of the call: what was sent is gone."""
    memory = _current.get()
    if memory is not None:
        memory.release()


__all__ = ["COPIES", "HELD_S_MAX", "CallMemory", "begin_call", "give_back", "hold", "release"]
