"""Old runs are removed from a folder, at the end of each run, and nothing else is."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from support import ROOT, wait_until
from support.runs_folder import CountingFolder

from stepflow.cli.run_list import list_runs
from stepflow.config import KEEP_EVERYTHING, RetentionConfig
from stepflow.embedded import expired_blobs, folder_retention
from stepflow.embedded.folder_retention import apply_retention
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import journal_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.errors import StepflowError

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DAY_S = 24 * 3600
A_DAY = RetentionConfig(age_ms=DAY_MS)
NOTHING = RetentionConfig(size_bytes=1)
"""Every run is too much."""


@pytest.fixture
def folder(tmp_path: Path) -> CountingFolder:
    return CountingFolder(tmp_path / "runs")


def end(folder: CountingFolder, **options: float) -> str:
    return asyncio.run(folder.end(**options))  # type: ignore[arg-type]  # passed on


def retain(
    folder: CountingFolder, retention: RetentionConfig, *, later_ms: int = 0
) -> tuple[list[str], list[StepflowError]]:
    """Apply a retention; return the removed runs and the errors."""
    reported: list[StepflowError] = []
    now_ms = time.time_ns() // 1_000_000 + later_ms
    return asyncio.run(apply_retention(folder, retention, reported.append, now_ms)), reported


def rest(folder: CountingFolder) -> list[str]:
    """Return the names that are left, of files and of folders of blobs."""
    blobs = folder.folder / "blobs"
    return sorted(
        [path.name for path in (folder.folder / "runs").iterdir()]
        + ([path.name for path in blobs.iterdir()] if blobs.exists() else [])
    )


def test_runs_beyond_the_age_go_with_all_their_files_and_blobs(folder: CountingFolder) -> None:
    old = [end(folder, ago_s=2 * DAY_S, blob_bytes=50_000) for _ in range(3)]
    young = end(folder, ago_s=DAY_S / 2, blob_bytes=50_000)
    assert retain(folder, KEEP_EVERYTHING) == ([], [])
    assert retain(folder, RetentionConfig()) == ([], [])
    assert len(rest(folder)) == 3 * 4

    assert retain(folder, A_DAY) == (old, [])
    assert rest(folder) == [young, f"{young}.db", f"{young}.db.lock"]
    assert folder.opened == [], "the index says when they ended"
    assert retain(folder, A_DAY) == ([], [])


def test_the_longest_ended_runs_go_until_the_others_fit(folder: CountingFolder) -> None:
    ids = [end(folder, ago_s=age_s, blob_bytes=1_000_000) for age_s in (300, 500, 200, 400)]
    with folder.index() as index:
        total = index.ended_bytes()
    assert 4_000_000 < total < 4_000_000 * 1.2

    assert retain(folder, RetentionConfig(size_bytes=total)) == ([], [])
    assert retain(folder, RetentionConfig(size_bytes=total - 1)) == ([ids[1]], [])
    assert retain(folder, RetentionConfig(size_bytes=total // 2)) == ([ids[3]], [])
    assert retain(folder, RetentionConfig(age_ms=DAY_MS, size_bytes=total // 2)) == ([], [])
    with folder.index() as index:
        assert index.ended_bytes() == total // 2


def test_a_run_that_ended_a_moment_ago_stays_for_the_process_that_prints_it(folder: CountingFolder) -> None:
    run_id = end(folder, ago_s=30)
    for retention in (NOTHING, RetentionConfig(age_ms=1)):
        assert retain(folder, retention) == ([], [])
    assert retain(folder, NOTHING, later_ms=60_000) == ([run_id], [])


def test_a_run_that_has_not_ended_is_never_removed(folder: CountingFolder) -> None:
    interrupted = asyncio.run(folder.put(status=pb.RUN_STATUS_RUNNING))
    empty = new_run_id()
    asyncio.run(_begin(folder, empty))
    for days in (10, 20):
        removed, reported = retain(folder, NOTHING, later_ms=days * DAY_MS)
        assert removed == []
        assert [str(folder.database(empty)) in error.message for error in reported] == [True]
        assert {name[:36] for name in rest(folder)} == {interrupted, empty}


async def _begin(folder: CountingFolder, run_id: str) -> None:
    """Leave what a process that is killed before its submission leaves."""
    store = await folder.create(run_id)
    await store.close()


def test_a_run_that_a_process_has_locked_stays_and_goes_later(folder: CountingFolder) -> None:
    run_id = end(folder)
    with folder.lock(run_id) as held:
        assert held
        with folder.lock(run_id) as again:
            assert not again
        assert retain(folder, NOTHING) == ([], [])
    assert retain(folder, NOTHING) == ([run_id], [])


def test_runs_that_no_process_noted_are_examined_and_damaged_ones_are_told(folder: CountingFolder) -> None:
    """Those of other versions, and of processes killed at their end."""
    ended, running, damaged, cut = (new_run_id() for _ in range(4))
    for run_id in (ended, damaged, cut):
        asyncio.run(folder.put(run_id))
    asyncio.run(folder.put(running, pb.RUN_STATUS_RUNNING))
    folder.database(damaged).write_bytes(b"SQLite format 3\0" + b"\xff" * 8_000)
    folder.database(cut).write_bytes(b"")
    (folder.folder / "index.db").unlink()

    removed, reported = retain(folder, A_DAY)
    assert removed == [ended]
    assert sorted(folder.opened) == sorted([ended, running, damaged, cut])
    assert {error.reason for error in reported} == {"STORE_CORRUPT", "STORE_NOT_A_STORE"}
    for error, run_id in zip(sorted(reported, key=str), sorted((damaged, cut)), strict=True):
        assert str(folder.database(run_id)) in error.message
    assert {name[:36] for name in rest(folder)} == {running, damaged, cut}

    # They are looked at again after an hour.
    folder.opened.clear()
    assert retain(folder, A_DAY) == ([], [])
    assert folder.opened == []
    assert len(retain(folder, A_DAY, later_ms=HOUR_MS + 2_000)[1]) == 2


def test_a_run_that_changed_after_its_end_is_examined_again(folder: CountingFolder) -> None:
    ids = [end(folder) for _ in range(3)]
    replaced, damaged, logged = ids
    asyncio.run(folder.put(replaced, pb.RUN_STATUS_RUNNING))
    folder.database(damaged).write_bytes(b"SQLite format 3\0" + b"\xff" * 8_000)
    folder.log(logged).write_bytes(b"\1" * 10_000)
    assert retain(folder, NOTHING) == ([], []), "what the index knows is of other files"

    removed, reported = retain(folder, NOTHING)
    assert removed == []
    assert {error.reason for error in reported} == {"STORE_CORRUPT", "STORE_NOT_A_STORE"}
    assert {name[:36] for name in rest(folder)} == set(ids)


def test_the_work_of_a_call_is_bounded(folder: CountingFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_retention, "RUNS_REMOVED_MAX", 2)
    monkeypatch.setattr(folder_retention, "RUNS_EXAMINED_MAX", 3)
    for _ in range(6):
        asyncio.run(folder.put())
    (folder.folder / "index.db").unlink()

    removed = [len(retain(folder, A_DAY)[0]) for _ in range(4)]
    assert removed == [2, 2, 2, 0]
    assert len(folder.opened) == 6
    assert folder.names_read == 1


def test_the_names_of_the_folder_are_read_only_if_others_changed_them_and_once_an_hour(
    folder: CountingFolder,
) -> None:
    end(folder)
    for _ in range(3):
        end(folder)
        retain(folder, RetentionConfig(size_bytes=1 << 30))
    assert folder.names_read == 0, "own runs are in the index"

    for hours, expected in ((0, 0), (2, 1), (2, 1), (4, 2)):
        (folder.folder / "runs" / f"other-{new_run_id()}").touch()
        retain(folder, A_DAY, later_ms=hours * HOUR_MS)
        assert folder.names_read == expected
    retain(folder, A_DAY, later_ms=6 * HOUR_MS)
    assert folder.names_read == 2, "nothing has changed"


@pytest.mark.parametrize("left", ["blobs", "lock", "nothing"])
def test_what_an_interrupted_removal_leaves_is_removed_by_the_next(folder: CountingFolder, left: str) -> None:
    run_id = end(folder, blob_bytes=50_000)
    folder.database(run_id).unlink()
    if left != "lock":
        folder.files(run_id)[-1].unlink()
    if left == "nothing":
        shutil.rmtree(folder.run_blobs(run_id))
    assert list(list_runs(folder)) == []
    retain(folder, A_DAY, later_ms=2 * DAY_MS)
    assert rest(folder) == []
    with folder.index() as index:
        assert list(index.newest()) == []
        assert index.ended_bytes() == 0


def test_processes_that_remove_runs_at_once_remove_each_of_them(folder: CountingFolder) -> None:
    ids = {end(folder, ago_s=2 * DAY_S, blob_bytes=40_000) for _ in range(60)}
    work = (
        "import asyncio, sys; from pathlib import Path; from stepflow.embedded.runs_folder import LocalRuns\n"
        "from stepflow.config import RetentionConfig\n"
        "from stepflow.embedded.folder_retention import apply_retention\n"
        "def fail(error): raise error\n"
        "removed = asyncio.run(apply_retention(LocalRuns(Path(sys.argv[1])), RetentionConfig(age_ms=1), fail))\n"
        "print(*removed)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", work, folder.folder], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    removed = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {run_id for each in removed for run_id in each} == ids
    assert rest(folder) == []
    with folder.index() as index:
        assert index.ended_bytes() == 0


def test_a_process_that_is_killed_while_it_removes_leaves_no_run_without_its_blobs(folder: CountingFolder) -> None:
    work = (
        "import asyncio, sys; from pathlib import Path; from stepflow.embedded.runs_folder import LocalRuns\n"
        "from stepflow.config import RetentionConfig\n"
        "from stepflow.embedded.folder_retention import apply_retention\n"
        "asyncio.run(apply_retention(LocalRuns(Path(sys.argv[1])), RetentionConfig(age_ms=1), print))"
    )
    ids = {end(folder, ago_s=2 * DAY_S, blob_bytes=40_000) for _ in range(150)}
    process = subprocess.Popen([sys.executable, "-c", work, folder.folder], env={**os.environ, "PYTHONPATH": str(ROOT)})
    runs = folder.folder / "runs"
    wait_until(lambda: len(list(runs.iterdir())) < 2 * len(ids) - 20, "it has begun to remove")
    process.send_signal(signal.SIGKILL)
    process.wait(30)

    kept = {name[:36] for name in rest(folder) if name.endswith(".db")}
    assert all(folder.run_blobs(run_id).exists() for run_id in kept)
    asyncio.run(_remove_all(folder))
    assert rest(folder) == []


async def _remove_all(folder: CountingFolder) -> None:
    await apply_retention(folder, A_DAY, _raise)


def _raise(error: StepflowError) -> None:
    raise error


def test_old_shared_blobs_go_unless_something_refers_to_them(folder: CountingFolder) -> None:
    """Those of the request of an ended run, of a run that has not ended, and those that they name, stay."""
    unused, asked, inner, held, young = (asyncio.run(_share(folder, text)) for text in ("1", "2", "3", "4", "5"))
    outer = asyncio.run(_share(folder, inner))
    ended = asyncio.run(folder.put(ended_at_ms=time.time_ns() // 1_000_000, variables={"a": asked, "b": outer}))
    asyncio.run(folder.put(status=pb.RUN_STATUS_RUNNING, variables={"c": held}))
    shared = folder.run_blobs("shared")
    for path in shared.iterdir():
        if path.name != young:
            os.utime(path, (1, 1))

    assert retain(folder, A_DAY) == ([], [])
    assert {path.name for path in shared.iterdir()} == {asked, inner, held, young, outer}

    folder.opened.clear()
    assert retain(folder, A_DAY, later_ms=3 * HOUR_MS) == ([], [])
    assert ended not in folder.opened, "its references are in the index"
    assert {path.name for path in shared.iterdir()} == {asked, inner, held, young, outer}

    # Once the run is removed, nothing refers to them.
    assert retain(folder, A_DAY, later_ms=DAY_MS + 6 * HOUR_MS) == ([ended], [])
    assert {path.name for path in shared.iterdir()} == {held}
    assert unused != young


async def _share(folder: CountingFolder, text: str) -> str:
    return await folder.blobs().put(text.encode())


@pytest.mark.parametrize("obstacle", ["unreadable", "too many", "size only"])
def test_shared_blobs_stay_while_a_run_may_refer_to_them(
    folder: CountingFolder, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    blob = asyncio.run(_share(folder, "1"))
    path = folder.run_blobs("shared") / blob
    os.utime(path, (1, 1))
    runs = [asyncio.run(folder.put(status=pb.RUN_STATUS_RUNNING)) for _ in range(2)]
    if obstacle == "unreadable":
        folder.database(runs[0]).write_bytes(b"SQLite format 3\0" + b"\xff" * 8_000)
    if obstacle == "too many":
        monkeypatch.setattr(expired_blobs, "RUNS_SEARCHED_MAX", 1)

    retain(folder, NOTHING if obstacle == "size only" else A_DAY)
    assert path.exists()
    if obstacle == "unreadable":
        folder.discard(runs[0])
    monkeypatch.setattr(expired_blobs, "RUNS_SEARCHED_MAX", 100)
    retain(folder, A_DAY, later_ms=2 * HOUR_MS)
    assert not path.exists()
