"""Replay of a journal in pieces, in any thread: it stops where it needs a blob, and continues once it has the blob."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from stepflow.errors import FailedPrecondition
from stepflow.run.advance import advance
from stepflow.run.apply import UNKNOWN_ENTRY, apply
from stepflow.run.values import unload_large

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.run.state import RunState


class ReplayListener(Protocol):
    """Gets each entry, in order, once its consequences are worked out."""

    def replayed(self, state: RunState, entry: pb.Entry) -> None: ...


class Replay:
    """The progress of a replay. One thread at a time may use it."""

    def __init__(self, state: RunState, listener: ReplayListener) -> None:
        self.state = state
        self.unknown: FailedPrecondition | None = None
        """Set at an entry of a later version; that entry and all behind it are not replayed."""
        self._listener = listener
        self._entries: deque[pb.Entry] = deque()
        self._applied = False
        self._blobs: dict[str, bytes | None] = {}

    def add(self, entries: Iterable[pb.Entry]) -> None:
        """Queue the next entries of the journal."""
        self._entries.extend(entries)

    def run(self, blobs: Mapping[str, bytes | None]) -> dict[str, bool]:
        """Replay the queue, given the blobs of the former answer.

        Return the blobs to load, each with True if a user supplied the id; empty once the queue is replayed.

        Raises: DataLoss.
        """
        self._blobs.update(blobs)
        state, entries = self.state, self._entries
        while entries and self.unknown is None:
            entry = entries[0]
            try:
                if not self._applied:
                    apply(state, entry)
                    self._applied = True
                if not advance(state, self._blobs) and state.wanted:
                    return state.take_wanted()
                self._listener.replayed(state, entry)
            except FailedPrecondition as error:
                if error.reason != UNKNOWN_ENTRY:
                    raise
                self.unknown = error
                break

            entries.popleft()
            self._applied = False
            self._blobs.clear()
            state.fresh.clear()  # work for an owner; here it would keep every step in memory
            unload_large(state)
        entries.clear()
        return {}


__all__ = ["Replay", "ReplayListener"]
