"""The partitions whose journals are being read here, counted in the store: a run may kill an executor by that alone.

- A key says that an owner has begun to read. It is durable before the first entry is read, and goes with the entry
  `Adopted`: what is left of it are owners that died in between. Fresh runs have no journal and no key.
- An executor that did not die takes its keys back: after an error, at its end, and after a lost session.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.errors import StepflowError
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Delete, Put, created_at, keys, version_is

if TYPE_CHECKING:
    from executor.adoption import OpenedPartition
    from executor.drive import PartitionId
    from executor.session import CurrentSession, Session
    from stepflow.store import KeyValue

FORGIVE_S_MAX = 1.0
"""How long the end of an executor waits for the store to take its keys back."""


class Readings:
    """The keys that this executor has put and not seen deleted."""

    def __init__(self, session: CurrentSession) -> None:
        self._session = session
        self._versions: dict[PartitionId, int] = {}
        """By partition: the version of the key as put here. Later owners raise it."""

    async def begin(self, session: Session, opened: OpenedPartition, assignment: KeyValue) -> None:
        """Count this executor among the readers of a partition. Raises: Conflict (the assignment is gone)."""
        if opened.fresh:
            return
        value = state_pb2.Adopting(count=opened.adopting.count + 1, executor_id=session.id)
        self._versions[opened.id] = opened.adopting_version + 1
        await session.write(
            [Put(keys.adopting(*opened.id), value.SerializeToString())],
            (created_at(assignment.key, assignment.create_revision),),
        )

    def end(self, partition_id: PartitionId) -> None:
        """Forget a partition whose `Adopted` takes the key along."""
        self._versions.pop(partition_id, None)

    def take_back(self, partition_id: PartitionId) -> None:
        """Delete the key of a partition: its reading failed, and this executor lives."""
        session = self._session()
        if session is not None and partition_id in self._versions:
            self._delete(session, partition_id)

    def take_all_back(self, session: Session) -> None:
        """Delete all keys that no later owner has put again: the readings were broken off, and this executor lives."""
        for partition_id in list(self._versions):
            self._delete(session, partition_id)

    async def close(self, session: Session) -> None:
        """Take all keys back at the orderly end of an executor; wait for the store a bounded time."""
        if not self._versions:
            return
        self.take_all_back(session)
        try:
            async with asyncio.timeout(FORGIVE_S_MAX):
                await session.writer.drain()
        except (StepflowError, TimeoutError):
            return  # the key stays, and counts as a death

    def _delete(self, session: Session, partition_id: PartitionId) -> None:
        key = keys.adopting(*partition_id)
        session.writer.submit(
            [Delete(key)],
            compares=(version_is(key, self._versions.pop(partition_id)),),
            on_commit=lambda: None,
            on_reject=lambda _error: None,
        )


__all__ = ["Readings"]
