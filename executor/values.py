"""The large values of a partition in memory: blobs fetched for expressions, and composed values until they are stored.

- Memory for the blobs of one round is taken at once, before any of them is fetched: partitions that each had half of
  what they need would wait for each other. A partition that holds memory gets more without waiting.
- A blob stays for as long as a reader is blocked that looks at it in every turn.
- Twice the size of a blob is counted, for the value composed of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from executor.blobs import RunBlobs
    from stepflow.run import RunState, WantBlob
    from stepflow.value_budget import ValueBudget

COMPOSED = 2
"""Factor on the size of a blob: the blob, and the value composed of it."""


class LookedAt(dict[str, bytes | None]):
    """Fetched blobs by id; `ids` has those looked at since it was cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()

    def get(self, blob: str, default: bytes | None = None) -> bytes | None:  # type: ignore[override]  # of one type
        self.ids.add(blob)
        return super().get(blob, default)

    def __getitem__(self, blob: str) -> bytes | None:
        self.ids.add(blob)
        return super().__getitem__(blob)


class ValuePartition(Protocol):
    """The side of a partition that its values use."""

    run_id: str
    state: RunState

    def turn(self) -> None: ...
    def spawn(self, work: Coroutine[object, object, None]) -> None: ...


class PartitionValues:
    """The large values of one partition. `active` is False while there is nothing to count."""

    __slots__ = ("_budget", "_closed", "_fetching", "_held", "_partition", "_round", "_run_blobs", "_storing", "blobs")

    def __init__(self, partition: ValuePartition, run_blobs: RunBlobs, budget: ValueBudget) -> None:
        self.blobs = LookedAt()
        """For `decide`."""
        self._partition = partition
        self._run_blobs = run_blobs
        self._budget = budget
        self._round: list[WantBlob] = []
        """Blobs to fetch as soon as there is memory for all of them."""
        self._fetching: dict[str, int] = {}
        """Bytes of the blobs being fetched, and of those in `_round`."""
        self._storing = 0
        """Bytes of composed values that are not in the blob store yet."""
        self._held = 0
        """Bytes taken from the budget."""
        self._closed = False

    @property
    def active(self) -> bool:
        return bool(self._held or self.blobs)

    def keep(self, blobs: dict[str, bytes]) -> None:
        """Keep fetched blobs for the next turn, which needs them."""
        self.blobs.update(blobs)

    def want(self, action: WantBlob) -> None:
        """Fetch a blob once there is memory for it, then let the partition go on. Idempotent."""
        if action.blob in self._fetching:
            return
        unknown = INLINE_BYTES_MAX if action.shared else PAYLOAD_BYTES_MAX
        self._fetching[action.blob] = COMPOSED * (action.bytes or unknown)
        self._round.append(action)
        if len(self._round) == 1:
            self._partition.spawn(self._fetch_round())

    def hold(self, size: int) -> None:
        """Count a composed value until `stored`."""
        self._storing += size
        self._count()

    def stored(self, size: int) -> None:
        """Count a composed value no longer."""
        self._storing -= size
        self._count()

    def after_turn(self) -> None:
        """Drop the blobs that nothing waits with."""
        state, blobs = self._partition.state, self.blobs
        if self._fetching or state.blocked or state.blocked_steps or state.unopened:
            for blob in blobs.keys() - blobs.ids:
                del blobs[blob]
        else:
            blobs.clear()
        blobs.ids.clear()
        self._count()

    def close(self) -> None:
        """Give all memory back: the partition is not driven here any more. Idempotent."""
        self._closed = True
        self.blobs.clear()
        self._count()

    async def _fetch_round(self) -> None:
        # 1. Wait for memory. Blobs that are wanted meanwhile join this round.
        if not self._held:
            first = sum(self._fetching[want.blob] for want in self._round)
            await self._budget.take(first)
            self._held += first
        wants, self._round = self._round, []
        self._count()
        if self._closed:
            return

        # 2. Fetch; each blob that comes may let steps go on.
        for want in wants:
            self._partition.spawn(self._fetch(want))

    async def _fetch(self, want: WantBlob) -> None:
        content = await self._run_blobs.get_blob(self._partition.run_id, want.blob, shared=want.shared)
        del self._fetching[want.blob]
        if not self._closed:
            self.blobs[want.blob] = content
            self._partition.turn()

    def _count(self) -> None:
        """Bring what is taken from the budget in line with what is in memory."""
        needed = 0
        if not self._closed:
            waiting = sum(self._fetching[want.blob] for want in self._round)
            fetched = sum(len(content or b"") for content in self.blobs.values())
            needed = COMPOSED * fetched + sum(self._fetching.values()) - waiting + self._storing
        if needed > self._held:
            self._budget.add(needed - self._held)
        elif needed < self._held:
            self._budget.release(self._held - needed)
        self._held = needed


__all__ = ["PartitionValues"]
