"""The runs of a folder are listed without opening the databases of ended runs again."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from control_plane.views import RunView
from stepflow.cli import stored
from stepflow.embedded import ended_runs
from stepflow.embedded.ended_runs import EndedRuns
from stepflow.embedded.runs_folder import LocalRuns
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Put, Txn, keys

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from stepflow.store.sqlite.store import SqliteStore


class Folder(LocalRuns):
    """A folder that counts the databases opened for reading."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opened: list[str] = []

    async def read(self, run_id: str) -> SqliteStore:
        self.opened.append(run_id)
        return await super().read(run_id)

    async def add(self, run_id: str, status: pb.RunStatus = pb.RUN_STATUS_COMPLETED, *, flow_name: str = "f") -> None:
        store = await self.create(run_id)
        record = state_pb2.RunRecord(
            flow_name=flow_name, items_total=1, items_per_partition=64, created_at_ms=1, labels_json=b'{"a":[1]}'
        )
        ended = state_pb2.PartitionStatus(status=status, items_total=1, items_completed=1, created_at_ms=1)
        writes = (
            Put(keys.run(run_id), record.SerializeToString()),
            Put(keys.status(run_id, 0), ended.SerializeToString()),
        )
        await store.txn(Txn((), writes))
        await store.close()

    async def listed(self) -> tuple[list[tuple[RunView, str]], list[str]]:
        """Return the list, and the runs whose databases were opened for it."""
        self.opened.clear()
        return [found async for found in stored.list_runs(self)], list(self.opened)


def test_the_database_of_an_ended_run_is_opened_for_one_list_only(tmp_path: Path) -> None:
    async def main() -> None:
        folder = Folder(tmp_path / "runs")
        ids = sorted((new_run_id() for _ in range(5)), reverse=True)
        for run_id in ids[1:]:
            await folder.add(run_id)
        await folder.add(ids[0], pb.RUN_STATUS_RUNNING)

        first, opened = await folder.listed()
        assert opened == ids
        assert [(run.run_id, status) for run, status in first] == [
            (ids[0], "interrupted"),
            *((run_id, "completed") for run_id in ids[1:]),
        ]
        assert await folder.listed() == (first, ids[:1])
        assert stat.S_IMODE((folder.folder / "ended").stat().st_mode) == 0o600

        # A database under the same name that is another one is read again; so is everything without the file.
        folder.discard(ids[2])
        await folder.add(ids[2], pb.RUN_STATUS_FAILED, flow_name="other")
        second, opened = await folder.listed()
        assert opened == [ids[0], ids[2]]
        assert (second[2][0].flow_name, second[2][1]) == ("other", "failed")
        (folder.folder / "ended").unlink()
        assert (await folder.listed()) == (second, ids)

    asyncio.run(main())


def test_lines_that_cannot_be_read_are_ignored_and_a_folder_that_cannot_be_written_is_listed(tmp_path: Path) -> None:
    async def main() -> None:
        folder = Folder(tmp_path / "runs")
        run_id = new_run_id()
        await folder.add(run_id)
        expected, _ = await folder.listed()
        kept = folder.folder / "ended"
        for damage in (b"\xff\n", run_id.encode() + b"{\n", run_id.encode() + b"[[1,2,3],{}]\n", b"\n\n"):
            kept.write_bytes(damage)
            assert await folder.listed() == (expected, [run_id])
        kept.unlink()
        kept.mkdir()
        assert await folder.listed() == (expected, [run_id])

    asyncio.run(main())


def test_the_file_is_written_anew_once_most_of_it_is_of_deleted_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended_runs, "STALE_LINES", 3)
    view = RunView(new_run_id(), "", "", "completed", 1, 1, 0, 0, 1, 2)
    database = tmp_path / "a.db"
    database.touch()
    ids: list[str] = []
    for _ in range(20):
        ended = EndedRuns(tmp_path)
        ids = [new_run_id()]
        ended.add(database, replace(view, run_id=ids[0]))
        ended.save(ids)
    assert len((tmp_path / "ended").read_bytes().splitlines()) <= 2 + 3
    found = EndedRuns(tmp_path).find(ids[0], database)
    assert found is not None
    assert found.run_id == ids[0]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("ended")] == ["ended"]
