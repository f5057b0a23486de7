"""How long ended runs stay where: in the store, in segments, at all."""

from __future__ import annotations

from dataclasses import dataclass

from control_plane.formats import FORMATS_GRACE_S
from stepflow.errors import Invalid

LINGER_S = 30.0
"""Default time in the store after the end of a run: clients wait for it, and read it at once."""

PACKED_BYTES_MAX = 64 * 1024**3


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long ended runs and shared blobs are kept, and how many bytes of runs."""

    store_bytes_max: int = 1024**3
    """Size of the store in use above which a run is packed as it ends. From half of it on the linger shrinks."""
    journals_s: float = 24 * 3600.0
    runs_s: float = 7 * 24 * 3600.0
    blobs_s: float = 30 * 24 * 3600.0
    """Age of shared blobs, since their last put."""
    linger_s: float = LINGER_S
    packed_bytes_max: int = PACKED_BYTES_MAX
    """Bound on all segments together: the runs that ended first go early."""
    formats_grace_s: float = FORMATS_GRACE_S
    """Time from the first start of this version until runs are packed, in a store with runs from before."""

    def __post_init__(self) -> None:
        bounds = (self.store_bytes_max, self.blobs_s, self.linger_s, self.packed_bytes_max, self.formats_grace_s)
        if min(bounds) < 0 or not 0 <= self.journals_s <= self.runs_s:
            raise Invalid(
                "RETENTION_INVALID", "retention: no limit may be negative, and journals are kept no longer than runs"
            )

    def linger_at(self, size_bytes: int) -> float:
        """Return the seconds from the end of a run to its packing, while the store uses `size_bytes`."""
        if not self.store_bytes_max:
            return 0.0
        share = size_bytes / self.store_bytes_max
        return self.linger_s * min(1.0, max(0.0, 2.0 - 2.0 * share))


__all__ = ["RetentionPolicy"]
