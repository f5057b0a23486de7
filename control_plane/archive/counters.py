"""What the leader's archive does, in numbers: for operators, and for the pace of admissions."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class ArchiveCounters:
    """Sums since the start of this process, and the present state, which is zero on a replica that does not lead."""

    packed_runs: int = 0
    """Runs packed, and their keys deleted."""
    packed_bytes: int = 0
    """Bytes of the segments that were written with these runs."""
    expired_runs: int = 0
    """Runs removed by age or by the bound on bytes."""
    segments: int = 0
    segment_runs: int = 0
    """Runs in the segments, without deleted ones."""
    segment_bytes: int = 0
    linger_s: float = 0.0
    """The present time from the end of a run to its packing."""
    waiting_runs: int = 0
    """Ended runs in the store, lingering ones included."""
    oldest_due_ms: int = 0
    """When the oldest of the runs that should be packed was due, in milliseconds since 1970; 0: none is due."""
    trouble: str = ""
    """Why the last try to pack failed; empty if it did not."""

    def clear_state(self) -> None:
        """Clear the present state, at the end of leadership."""
        self.segments = self.segment_runs = self.segment_bytes = self.waiting_runs = self.oldest_due_ms = 0
        self.linger_s, self.trouble = 0.0, ""

    def lag_s(self) -> float:
        """Return the time since the oldest run that is due was due, in seconds."""
        return max(0.0, time.time() - self.oldest_due_ms / 1000) if self.oldest_due_ms else 0.0


__all__ = ["ArchiveCounters"]
