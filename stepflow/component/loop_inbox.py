"""`LoopInbox`: actions handed from component threads to the event loop, with one wake-up per batch."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class LoopInbox:
    """Runs actions on the thread of the running event loop, in the order of their posting."""

    __slots__ = ("_actions", "_loop", "_thread_id", "_woken")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._actions: deque[Callable[[], None]] = deque()
        self._woken = False

    def on_loop_thread(self) -> bool:
        return threading.get_ident() == self._thread_id

    def run(self, action: Callable[[], None]) -> None:
        """Run an action at once on the loop's thread, else post the action. From any thread."""
        if self.on_loop_thread():
            action()
        else:
            self.post(action)

    def post(self, action: Callable[[], None]) -> None:
        """Run an action in a later turn of the loop. From any thread."""
        # Append before the look at the flag; the loop clears the flag before it pops: the reverse loses an action.
        self._actions.append(action)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._run_posted)
            except RuntimeError:  # the loop is closed: the server has ended
                return

    def _run_posted(self) -> None:
        self._woken = False
        actions = self._actions
        while actions:
            actions.popleft()()
