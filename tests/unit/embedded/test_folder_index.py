"""The runs of a folder are listed from its index: databases of ended runs are opened for one list only."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import ROOT
from support.runs_folder import CountingFolder

from stepflow.cli.run_list import list_runs
from stepflow.embedded import folder_index
from stepflow.errors import Invalid, NotFound
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import journal_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    from control_plane.view_records import RunView
    from stepflow.embedded.runs_folder import LocalRuns


def listed(folder: CountingFolder, *statuses: str) -> tuple[list[tuple[RunView, str]], list[str]]:
    """Return a list, and the runs whose databases were opened for it."""
    folder.opened.clear()
    return list(list_runs(folder, statuses)), list(folder.opened)


def put(folder: LocalRuns, *args: object, **options: object) -> str:
    return asyncio.run(CountingFolder(folder.folder).put(*args, **options))  # type: ignore[arg-type]  # passed on


@pytest.fixture
def folder(tmp_path: Path) -> CountingFolder:
    return CountingFolder(tmp_path / "runs")


def test_the_database_of_an_ended_run_is_opened_for_one_list_only(folder: CountingFolder) -> None:
    ids = sorted((new_run_id() for _ in range(5)), reverse=True)
    for run_id in ids[1:]:
        put(folder, run_id)
    put(folder, ids[0], pb.RUN_STATUS_RUNNING)

    first, opened = listed(folder)
    assert opened == ids
    assert [(run.run_id, status) for run, status in first] == [
        (ids[0], "interrupted"),
        *((run_id, "completed") for run_id in ids[1:]),
    ]
    assert listed(folder) == (first, ids[:1])
    assert stat.S_IMODE((folder.folder / "index.db").stat().st_mode) == 0o600

    # A database under the same name that is another one is read again; so is everything without the file.
    folder.discard(ids[2])
    put(folder, ids[2], pb.RUN_STATUS_FAILED, flow_name="other")
    second, opened = listed(folder)
    assert opened == [ids[0], ids[2]]
    assert (second[2][0].flow_name, second[2][1]) == ("other", "failed")
    (folder.folder / "index.db").unlink()
    assert listed(folder) == (second, ids)


def test_a_replaced_database_is_read_again(folder: CountingFolder) -> None:
    run_id = put(folder)
    listed(folder)
    database = folder.database(run_id)
    database.write_bytes(database.read_bytes())
    assert listed(folder)[1] == [run_id]
    assert listed(folder)[1] == []


def test_a_list_of_a_status_opens_no_database_of_an_ended_run(folder: CountingFolder) -> None:
    failed = [put(folder, status=pb.RUN_STATUS_FAILED) for _ in range(3)]
    others = [put(folder) for _ in range(3)]
    running = put(folder, status=pb.RUN_STATUS_RUNNING)
    listed(folder)

    for statuses, expected in (
        (("failed",), failed),
        (("completed", "failed"), failed + others),
        (("interrupted",), [running]),
        (("cancelled",), []),
    ):
        found, opened = listed(folder, *statuses)
        assert [run.run_id for run, _ in found] == sorted(expected, reverse=True)
        assert opened == [running]


def test_a_list_of_more_runs_than_a_page_has_each_of_them_once(
    folder: CountingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "PAGE_ROWS", 2)
    ids = [put(folder, status=pb.RUN_STATUS_FAILED if number % 2 else pb.RUN_STATUS_COMPLETED) for number in range(7)]
    for statuses in ((), ("completed", "failed")):
        assert [run.run_id for run, _ in listed(folder, *statuses)[0]] == sorted(ids, reverse=True)


def test_own_runs_leave_nothing_to_read_again_and_those_of_commands_without_the_index_do(
    folder: CountingFolder,
) -> None:
    first = put(folder)
    listed(folder)
    second = put(folder)
    folder.names_read = 0
    assert [run.run_id for run, _ in listed(folder)[0]] == [second, first]
    assert folder.names_read == 0

    # A command of a version without the index adds a run, and removes one.
    stranger = new_run_id()
    source = folder.database(second)
    folder.database(stranger).write_bytes(source.read_bytes().replace(second.encode(), stranger.encode()))
    assert [run.run_id for run, _ in listed(folder)[0]] == [stranger, second, first]
    assert folder.names_read == 1
    folder.database(first).unlink()
    assert [run.run_id for run, _ in listed(folder)[0]] == [stranger, second]
    assert folder.names_read == 2
    assert listed(folder)[1] == []
    assert folder.names_read == 2


def test_an_index_that_is_damaged_is_made_again(folder: CountingFolder) -> None:
    run_id = put(folder)
    expected, _ = listed(folder)
    path = folder.folder / "index.db"
    for damage in (b"\xff" * 5_000, b"SQLite format 3\0" + b"\xff" * 8_176):
        path.write_bytes(damage)
        assert listed(folder) == (expected, [run_id])
        assert listed(folder) == (expected, [])


def test_an_index_that_is_damaged_while_it_is_open_is_made_again(folder: CountingFolder) -> None:
    ids = [put(folder) for _ in range(50)]
    expected, _ = listed(folder)
    path = folder.folder / "index.db"
    with folder.index() as index:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4_096)
            file.write(b"\xff" * (size - 4_096))
        assert list(index.newest()) == [], "empty, as there is nothing to trust"
    assert listed(folder) == (expected, sorted(ids, reverse=True))


def test_an_index_that_cannot_be_used_is_replaced_by_one_in_memory(folder: CountingFolder) -> None:
    run_id = put(folder)
    expected, _ = listed(folder)
    path = folder.folder / "index.db"

    # A later version's stays as it is.
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    contents = path.read_bytes()
    assert listed(folder) == (expected, [run_id])
    assert path.read_bytes() == contents

    path.unlink()
    path.mkdir()
    assert listed(folder) == (expected, [run_id])


def test_views_that_cannot_be_read_are_ignored(folder: CountingFolder) -> None:
    run_id = put(folder)
    expected, _ = listed(folder)
    for view in ("{", "{}", '{"run_id": 5}'):
        db = sqlite3.connect(folder.folder / "index.db", isolation_level=None)
        db.execute("UPDATE runs SET view = ?", (view,))
        db.close()
        assert listed(folder) == (expected, [run_id])


def test_a_folder_without_runs_is_listed_and_left_as_it_is(folder: CountingFolder) -> None:
    assert listed(folder) == ([], [])
    assert not folder.folder.exists()


def test_a_beginning_or_an_end_finds_the_only_run_with_it(folder: CountingFolder) -> None:
    ids = [f"018f0000-0000-7000-8000-00000000000{digit}" for digit in "0123456a"]
    for run_id in ids:
        put(folder, run_id)
    assert folder.find(ids[3]) == ids[3]
    assert folder.find(ids[-1].upper()) == ids[-1]
    assert folder.find("000A") == ids[-1]
    assert folder.find("last") == ids[-1]
    with pytest.raises(
        Invalid, match=r"8 run ids begin or end with 018f0000-0: .*a, .*6, .*5, .*4, .*3, …"
    ) as ambiguous:
        folder.find("018F0000-0")
    assert ambiguous.value.reason == "RUN_ID_AMBIGUOUS"
    for text in ("018f1", "", "%", "00a", "%00a", ids[0] + "0", new_run_id()):
        with pytest.raises(NotFound):
            folder.find(text)


def test_processes_that_begin_and_end_runs_at_once_leave_a_complete_index(folder: CountingFolder) -> None:
    work = (
        "import asyncio, sys; from pathlib import Path; from support.runs_folder import CountingFolder\n"
        "async def main():\n"
        "    folder = CountingFolder(Path(sys.argv[1]))\n"
        "    for _ in range(10): await folder.end()\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    processes = [subprocess.Popen([sys.executable, "-c", work, folder.folder], env=environment) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    found, opened = listed(folder)
    assert len(found) == 30
    assert opened == []
    with folder.index() as index:
        assert index.ended_bytes() == sum(row.size_bytes for row in index.longest_ended(2**62, 100)) > 0
