"""A folder of local runs that tests fill without driving runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stepflow.codec import encode
from stepflow.embedded.examine import examine
from stepflow.embedded.runs_folder import LocalRuns
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Put, Txn, keys

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.store.sqlite.store import SqliteStore


class CountingFolder(LocalRuns):
    """A folder that counts the databases opened for reading, and the readings of its names."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opened: list[str] = []
        self.names_read = 0

    async def read(self, run_id: str) -> SqliteStore:
        self.opened.append(run_id)
        return await super().read(run_id)

    def run_ids(self) -> list[str]:
        self.names_read += 1
        return super().run_ids()

    async def put(
        self,
        run_id: str = "",
        status: pb.RunStatus = pb.RUN_STATUS_COMPLETED,
        *,
        flow_name: str = "f",
        ended_at_ms: int = 2,
        variables: dict[str, str] | None = None,
    ) -> str:
        """Store a run as its process leaves it when it is killed at its end, and return its id."""
        run_id = run_id or new_run_id()
        store = await self.create(run_id)
        record = state_pb2.RunRecord(
            flow_name=flow_name, items_total=1, items_per_partition=64, created_at_ms=1, labels_json=b'{"a":[1]}'
        )
        record.variables_json = encode(variables or {})
        ended = state_pb2.PartitionStatus(
            status=status, items_total=1, items_completed=1, created_at_ms=1, completed_at_ms=ended_at_ms
        )
        writes = (
            Put(keys.run(run_id), record.SerializeToString()),
            Put(keys.status(run_id, 0), ended.SerializeToString()),
        )
        await store.txn(Txn((), writes))
        with self.index() as index, index.own_changes():
            await store.close()
        return run_id

    async def end(self, *, ago_s: float = 3600, blob_bytes: int = 0) -> str:
        """Store a run that ended some time ago, with a blob, as the index knows it; return its id."""
        run_id = await self.put(ended_at_ms=int((time.time() - ago_s) * 1000))
        if blob_bytes:
            await self.blobs().put(b"x" * blob_bytes, scope=run_id)
        with self.index() as index:
            await examine(self, index, run_id)
        self.opened.clear()
        return run_id
