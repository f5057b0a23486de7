"""The records of runs and items that clients see. Without imports of the engine: a list of stored runs starts fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from stepflow.codec import Json, LargeJson
    from stepflow.errors import Failure


class HostWait(NamedTuple):
    """A partition that waits for a host, as the owner of this epoch has told."""

    partition: int
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunView:
    """A run. `status`: running, completed, failed, cancelled or recovery_failed. Times in ms since 1970."""

    run_id: str
    flow_id: str
    flow_name: str
    status: str
    items_total: int
    items_completed: int
    items_failed: int
    items_cancelled: int
    created_at_ms: int
    completed_at_ms: int | None
    labels: dict[str, Any] = field(default_factory=dict)
    queued_reason: str = ""
    """Why the run makes no progress; known to the API only."""
    paused_ms: int = 0
    """How long no process drove an ended run; 0 in a mesh."""
    host_waits: tuple[HostWait, ...] = ()
    """Why the owners make no progress, for each partition that has not ended; empty if one of them does."""

    @property
    def terminal(self) -> bool:
        return self.status != "running"

    @property
    def items_running(self) -> int:
        return self.items_total - self.items_completed - self.items_failed - self.items_cancelled


@dataclass(frozen=True, slots=True)
class ItemView:
    """An item. `outcome`: None while running; `LargeJson` for a result of more than 16 MiB."""

    item: int
    status: str
    outcome: Json | Failure | LargeJson | None
    completed_at_ms: int | None


__all__ = ["HostWait", "ItemView", "RunView"]
