"""The size above which a value becomes a blob. While the store is short of room, the leader lowers it.

- Only where a value enters: a host's result, the inputs of a sub-run, a result of the engine or of a run. Receivers
  check `INLINE_BYTES_MAX`, whatever the bound is now, so services that know it and others work together.
- A hint. Without the key, or before it is read, the bound is `INLINE_BYTES_MAX`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from stepflow.codec import INLINE_BYTES_MAX
from stepflow.mesh.v1 import pressure_pb2
from stepflow.store import keys
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.store.protocol import KeyValue, Store, StoreEvent

log = get_logger(__name__)

INLINE_BYTES_MIN = 1024
"""The bound falls no lower, whatever the key says."""


class InlineBound:
    """The present bound, in bytes."""

    def __init__(self) -> None:
        self.bytes_max = INLINE_BYTES_MAX

    async def follow(self, store: Store) -> None:
        """Follow the leader's key until cancelled."""
        await follow(store, keys.pressure(), listed=self._listed, changed=self._changed)

    def _listed(self, items: list[KeyValue]) -> None:
        values = [item.value for item in items if item.key == keys.pressure()]
        self._set(values[0] if values else b"")

    def _changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kv.key == keys.pressure():
                self._set(event.kv.value)

    def _set(self, value: bytes) -> None:
        try:
            told = pressure_pb2.Pressure.FromString(value).inline_bytes_max or INLINE_BYTES_MAX
        except DecodeError:
            told = INLINE_BYTES_MAX
        bytes_max = min(max(told, INLINE_BYTES_MIN), INLINE_BYTES_MAX)
        if bytes_max != self.bytes_max:
            log.info("larger values become blobs", bytes_max=bytes_max)
        self.bytes_max = bytes_max


__all__ = ["InlineBound"]
