"""`HostReply`: the host's answer to a component's request. Authors know the class as `stepflow.component.Reply`.

Invariant: a reply is settled exactly once, on the event loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

T = TypeVar("T")


class HostReply(Generic[T]):
    """The host's answer to a request already sent: `await reply` in async components, `reply.result()` in sync ones."""

    __slots__ = ("_future", "_on_loop_thread", "_slot_released")

    def __init__(
        self,
        future: Future[T],
        on_loop_thread: Callable[[], bool],
        slot_released: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`slot_released` surrounds a blocking wait, and lends the thread's slot in the pool to another call."""
        self._future = future
        self._on_loop_thread = on_loop_thread
        self._slot_released = slot_released

    def __await__(self) -> Generator[Any, None, T]:
        import asyncio

        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout_s: float | None = None) -> T:
        """Block the calling thread until the host has answered.

        Raises:
            HostError: the host refused. FlowFailed: from `run_flow`. TimeoutError: no answer in time.
            RuntimeError: called on the event loop (an async or inline component), a certain deadlock.
        """
        if self._on_loop_thread() and not self._future.done():
            raise RuntimeError(
                "Reply.result() would block the event loop: in an async component `await` the reply; "
                "a component that waits for the host cannot be inline"
            )

        if self._future.done():
            return self._future.result()
        with self._slot_released():
            return self._future.result(timeout_s)
