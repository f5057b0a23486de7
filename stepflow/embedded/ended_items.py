"""The items of a run that end while an embedded mesh drives it: hints for output during the run.

An item is named once its end is recorded, which is before the end is durable. Readers of the store may not see it yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor.drive import PartitionDriver
    from executor.executor import Executor


class EndedItems:
    """Watches one run."""

    def __init__(self, executor: Executor, run_id: str) -> None:
        self._ownership = executor.ownership
        self._run_id = run_id
        self._counts: dict[int, int] = {}
        """By partition: the items that had ended at the last look."""
        self._found: set[int] = set()
        executor.ownership.on_ended = self._note_partition

    def take(self) -> set[int]:
        """Return the items that have ended since the last call, and some that ended before."""
        for driver in self._ownership.partitions_of(self._run_id):
            root = driver.state.root
            if root.items_done != self._counts.get(driver.partition, 0):
                self._counts[driver.partition] = root.items_done
                self._found.update(root.first_item + item.index for item in root.items if item.outcome is not None)
        found, self._found = self._found, set()
        return found

    def _note_partition(self, driver: PartitionDriver) -> None:
        if driver.run_id == self._run_id:
            root = driver.state.root
            self._found.update(range(root.first_item, root.first_item + len(root.items)))


__all__ = ["EndedItems"]
