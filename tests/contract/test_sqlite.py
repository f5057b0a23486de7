"""Properties of the SQLite store alone: its file and lock, corruption, restarts, bounded memory."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async

from stepflow.errors import DataLoss, FailedPrecondition, NotFound, StepflowError
from stepflow.store import (
    Delete,
    KeyValue,
    Put,
    StoreCompacted,
    StoreUnavailable,
    StoreUnreadable,
    Txn,
    delete,
    put,
    range_all,
    watch_queue,
)
from stepflow.store.sqlite import engine, history
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

NOBODY = 65534


def run(scenario: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await scenario

    return asyncio.run(bounded())


@asynccontextmanager
async def opened(path: Path | str, **options: Any) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, **options)
    try:
        yield store
    finally:
        await store.close()


async def error_of_opening(path: Path, **options: Any) -> StepflowError:
    with pytest.raises(StepflowError) as caught:
        await SqliteStore.open(path, **options)
    assert str(path) in caught.value.message
    return caught.value


# -- restarts -----------------------------------------------------------------------------------------------------


def test_content_and_revision_outlive_the_process_and_leases_do_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "a.db"
        async with opened(path) as store:
            lease = await store.lease_grant(3600)
            await store.txn(Txn((), (Put("keep", b"1"), Put("s/1", b"", lease), Put("s/2", b"", lease))))
            await delete(store, "nothing")
            await put(store, "keep", b"2")
        async with opened(path) as store:
            assert await store.revision() == 4  # 2, 3, and one for all leased keys
            assert [kv async for kv in range_all(store, "")] == [KeyValue("keep", b"2", 2, 3, 2)]
            with pytest.raises(NotFound):
                await store.lease_keep_alive(lease)
            seen = await anext(aiter(store.watch("s/", from_revision=4)))
            assert [(event.kind, event.kv.key) for event in seen.events] == [("delete", "s/1"), ("delete", "s/2")]
        async with opened(path) as store:
            assert await store.revision() == 4

    run(scenario())


def test_the_past_of_an_earlier_process_is_compacted(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "a.db"
        async with opened(path) as store:
            for i in range(3):
                await put(store, f"k{i}", b"")
        async with opened(path) as store:
            for revision in (1, 4):
                with pytest.raises(StoreCompacted) as caught:
                    await anext(aiter(store.watch("k", from_revision=revision)))
                assert caught.value.details["compacted"] == 4
            with pytest.raises(StoreCompacted):
                await store.range("k", revision=3)
            assert len((await store.range("k", revision=4)).items) == 3

    run(scenario())


WRITER = """
import asyncio, sys
from stepflow.store import Put, Txn
from stepflow.store.sqlite.store import SqliteStore

async def main():
    store = await SqliteStore.open(sys.argv[1])
    lease = await store.lease_grant(3600)
    await store.txn(Txn((), (Put("session", b"", lease),)))
    for i in range(1_000_000):
        await store.txn(Txn((), (Put(f"a/{i:06}", b"x" * 100), Put(f"b/{i:06}", b""), Put("last", str(i).encode()))))
        print(i, flush=True)

asyncio.run(main())
"""


@asynccontextmanager
async def writing_process(path: Path, count: int) -> AsyncIterator[tuple[subprocess.Popen[str], int]]:
    """A process that writes to the store, `count` transactions or more ago; killed at the end."""
    command = [sys.executable, "-c", WRITER, str(path)]
    process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        last = -1
        while last < count:
            line = await asyncio.to_thread(process.stdout.readline)
            assert line, "the writer died"
            last = int(line)
        yield process, last
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_after_a_sigkill_everything_confirmed_is_there_and_transactions_are_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "a.db"
        async with writing_process(path, 50) as (process, _):
            process.send_signal(signal.SIGKILL)
            assert process.stdout is not None
            lines = process.stdout.read().splitlines()
        confirmed = int(lines[-1]) if lines else 50
        async with opened(path, read_only=True) as store:  # recovers the log
            assert await store.get("session") is not None
        async with opened(path) as store:
            last = await store.get("last")
            assert last is not None
            assert int(last.value) in (confirmed, confirmed + 1)
            for prefix in ("a/", "b/"):
                found = [kv.key async for kv in range_all(store, prefix)]
                assert found == [f"{prefix}{i:06}" for i in range(int(last.value) + 1)]
            assert await store.get("session") is None
            assert await store.revision() == last.mod_revision + 1

    run(scenario())


# -- one process --------------------------------------------------------------------------------------------------


def test_a_database_belongs_to_one_process_and_readers_may_look(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "a.db"
        async with writing_process(path, 3) as (process, last):
            error = await error_of_opening(path)
            assert isinstance(error, StoreUnreadable)
            assert error.reason == "STORE_LOCKED"
            assert str(process.pid) in error.message
            async with opened(path, read_only=True) as reader:
                first = await reader.range("")
                assert len(first.items) >= 2 * last
                assert process.stdout is not None
                for _ in range(10):
                    await asyncio.to_thread(process.stdout.readline)
                assert await reader.range("") == first  # one snapshot
            async with opened(path, read_only=True) as reader:
                assert await reader.revision() > first.revision
        async with opened(path) as store:
            assert await store.get("last") is not None

    run(scenario())


def test_the_lock_holds_within_a_process_too_and_ends_with_closing(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "a.db"
        async with opened(path):
            assert (await error_of_opening(path)).reason == "STORE_LOCKED"
        async with opened(path) as store:
            await put(store, "a", b"")

    run(scenario())


def test_a_reader_changes_nothing_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "a.db"
        async with opened(path) as store:
            lease = await store.lease_grant(3600)
            await put(store, "a", b"1", lease=lease)
            async with opened(path, read_only=True) as reader:
                for call in (put(reader, "a", b"2"), delete(reader, "a"), reader.lease_grant(5)):
                    with pytest.raises(FailedPrecondition) as caught:
                        await call
                    assert caught.value.reason == "STORE_READ_ONLY"
                with pytest.raises(FailedPrecondition):
                    reader.watch("a")
                assert await reader.get("a") == KeyValue("a", b"1", 2, 2, 1, lease)
                assert [kv.key async for kv in range_all(reader, "")] == ["a"]
            assert await put(store, "a", b"3") == 3

    run(scenario())


# -- files --------------------------------------------------------------------------------------------------------


def test_folders_and_files_are_for_their_owner_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        folder = tmp_path / ".stepflow"
        async with opened(folder / "runs" / "r 1#?%.db") as store:
            await put(store, "a", b"")
            for path in (folder, folder / "runs"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o700
            files = list((folder / "runs").iterdir())
            assert {file.name for file in files} >= {"r 1#?%.db", "r 1#?%.db-wal", "r 1#?%.db.lock"}
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    run(scenario())


def test_the_file_of_a_small_store_is_small(tmp_path: Path) -> None:
    """There is one for every run: what prepares the log must not stay behind."""

    async def scenario() -> None:
        async with opened(tmp_path / "run.db") as store:
            await put(store, "a", b"")

    run(scenario())
    assert (tmp_path / "run.db").stat().st_size < 64 * 1024


def test_a_missing_store_is_not_created_by_a_reader(tmp_path: Path) -> None:
    async def scenario() -> None:
        error = await error_of_opening(tmp_path / "no" / "a.db", read_only=True)
        assert (type(error), error.reason) == (NotFound, "STORE_NOT_FOUND")

    run(scenario())
    assert list(tmp_path.iterdir()) == []


def make_text(path: Path) -> None:
    path.write_text("this is no database\n" * 100)


def make_short_text(path: Path) -> None:
    path.write_text("x")


def make_foreign_database(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE kv (key TEXT)")
    db.close()


def make_later_version(path: Path) -> None:
    async def create() -> None:
        async with opened(path):
            pass

    asyncio.run(create())
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_text, "STORE_NOT_A_STORE"),
        (make_short_text, "STORE_NOT_A_STORE"),
        (make_foreign_database, "STORE_NOT_A_STORE"),
        (make_later_version, "STORE_VERSION_UNKNOWN"),
        (Path.mkdir, "STORE_UNREADABLE"),
    ],
)
def test_what_is_no_store_of_ours_is_refused_and_left_as_it_is(
    tmp_path: Path, make: Any, reason: str, read_only: bool
) -> None:
    path = tmp_path / "a.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for _ in range(2):
        error = run(error_of_opening(path, read_only=read_only))
        assert isinstance(error, StoreUnreadable)
        assert error.reason == reason
    if before is not None:
        assert path.read_bytes() == before


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = run(error_of_opening(tmp_path / "file" / "a.db"))
    assert (type(error), error.reason) == (StoreUnreadable, "STORE_UNREADABLE")


def test_an_impossible_path_is_refused(tmp_path: Path) -> None:
    assert run(error_of_opening(tmp_path / "a\0b.db")).reason == "STORE_UNREADABLE"
    assert run(error_of_opening(tmp_path / ("x" * 300))).reason == "STORE_UNREADABLE"


def test_a_forbidden_file_is_refused() -> None:
    """Root can open every file, so the test drops to the uid of `nobody` when it runs as root."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        path.write_text("")
        path.chmod(0)
        Path(folder).chmod(0o777)
        if is_root:
            os.seteuid(NOBODY)
        try:
            error = run(error_of_opening(path))
        finally:
            if is_root:
                os.seteuid(0)
    assert error.reason == "STORE_UNREADABLE"
    assert "denied" in error.message


def test_damage_is_told_as_data_loss(tmp_path: Path) -> None:
    async def fill() -> None:
        async with opened(path) as store:
            for i in range(20):
                await put(store, f"k{i}", b"x" * 50_000)

    async def read() -> None:
        async with opened(path) as store:
            async for _ in range_all(store, ""):
                pass

    path = tmp_path / "a.db"
    run(fill())
    with path.open("r+b") as file:  # all but the header
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    with pytest.raises(DataLoss) as caught:
        run(read())
    assert caught.value.reason == "STORE_CORRUPT"
    assert str(path) in caught.value.message


# -- the thread ---------------------------------------------------------------------------------------------------


def test_waiting_transactions_share_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    commit = engine.Engine.commit

    def counted(engine: engine.Engine) -> list[history.Record]:
        records = commit(engine)
        commits.append(len(records))
        return records

    monkeypatch.setattr(engine.Engine, "commit", counted)

    async def scenario() -> None:
        async with opened(tmp_path / "a.db") as store:
            results = await asyncio.gather(*(put(store, f"k{i % 7}", b"") for i in range(200)))
            assert results == list(range(2, 202))

    run(scenario())
    assert sum(commits) == 200
    assert len(commits) < 50


def test_a_full_disk_fails_a_batch_whole_and_the_store_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "a.db") as store:
            lease = await store.lease_grant(3600)
            await put(store, "a", b"1", lease=lease)
            watch = store.watch("")
            await limit_pages(store, 0)
            big = b"x" * 1_000_000
            calls = (put(store, "a", b"2"), put(store, "b", big), store.get("a"), store.lease_revoke(lease))
            for result in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(result, StoreUnavailable)
                assert result.reason == "STORE_IO_ERROR"
            assert await store.revision() == 2
            assert await store.get("a") == KeyValue("a", b"1", 2, 2, 1, lease)
            await limit_pages(store, 1_000_000)
            assert await put(store, "b", big) == 3
            assert await store.lease_keep_alive(lease) == 3600
            seen = await anext(aiter(watch))
            assert (seen.revision, seen.events[0].kv.key) == (3, "b")

    run(scenario())


def test_a_lease_that_cannot_be_ended_is_ended_later(tmp_path: Path) -> None:
    """A full disk, simulated by a read-only connection: a deletion may need no new page."""
    rounds = 0
    execute = SqliteStore._execute

    def counted(store: SqliteStore, engine: engine.Engine, batch: list[Any]) -> None:
        nonlocal rounds
        rounds += 1
        execute(store, engine, batch)

    async def scenario() -> None:
        async with opened(tmp_path / "a.db") as store:
            lease = await store.lease_grant(0.2)
            watch = store.watch("a")
            await put(store, "a", b"1", lease=lease)
            await pragma(store, "query_only = ON")
            before = rounds
            await wait_until_async(lambda: rounds >= before + 3, "the thread has tried three times")
            assert await store.get("a") is not None
            await pragma(store, "query_only = OFF")
            assert [(await anext(aiter(watch))).events[0].kind for _ in range(2)] == ["put", "delete"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteStore, "_execute", counted)
        run(scenario())
    assert rounds < 100


async def limit_pages(store: SqliteStore, pages: int) -> None:
    """Let the database grow to so many pages, at least what it has: SQLite's own full disk."""
    await pragma(store, f"max_page_count = {pages or 1}")


async def pragma(store: SqliteStore, text: str) -> None:
    await store._ask(lambda engine: engine._table._db.execute(f"PRAGMA {text}").fetchall())


def test_a_store_leaves_no_thread_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "a.db") as store:
            await store.get("a")
        (tmp_path / "bad.db").write_text("no database, but long enough to be read as a header" * 10)
        await error_of_opening(tmp_path / "bad.db")

    before = set(threading.enumerate())  # a store that another test of this process dropped may end later
    run(scenario())
    assert [thread.name for thread in set(threading.enumerate()) - before if thread.name == "stepflow-sqlite"] == []


@pytest.mark.parametrize("method", ["_gather", "_execute"])
def test_a_thread_that_ends_by_a_defect_leaves_nobody_waiting(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with opened(":memory:") as store:
            watch = store.watch("a")
            await store.get("a")
            monkeypatch.setattr(SqliteStore, method, raise_defect)
            # The thread waits in the original method at first, which may answer some.
            await asyncio.gather(*(store.get("a") for _ in range(20)), return_exceptions=True)
            with pytest.raises((StoreUnavailable, RuntimeError)):
                await store.get("a")
            await asyncio.shield(store._ended)
            with pytest.raises(StoreUnavailable):
                await store.get("a")
            with pytest.raises(StoreUnavailable):
                await anext(aiter(watch))

    run(scenario())


def raise_defect(*_: object) -> None:
    raise RuntimeError("a defect")


KEEPER = """
import asyncio
from stepflow.errors import NotFound
from stepflow.store.sqlite.store import SqliteStore

async def main():
    store = await SqliteStore.open(":memory:")
    lease = await store.lease_grant(0.5)
    while True:
        try:
            await store.lease_keep_alive(lease)
        except NotFound:
            print("gone", flush=True)
            return
        print("alive", flush=True)
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


def test_a_stopped_process_finds_its_leases_alive_when_it_goes_on() -> None:
    process = subprocess.Popen([sys.executable, "-c", KEEPER], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)  # twice the time to live: here time itself is the condition
        process.send_signal(signal.SIGCONT)
        assert {process.stdout.readline() for _ in range(30)} == {"alive\n"}
    finally:
        end(process)


# -- bounded memory -----------------------------------------------------------------------------------------------


def test_history_is_bounded_and_older_watches_and_ranges_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HISTORY_REVISIONS_MAX", 10)

    async def scenario() -> None:
        async with opened(":memory:") as store:
            for i in range(30):
                await put(store, "k", str(i).encode())  # revisions 2-31
            with pytest.raises(StoreCompacted):
                await anext(aiter(store.watch("k", from_revision=21)))
            assert (await anext(aiter(store.watch("k", from_revision=22)))).revision == 22
            with pytest.raises(StoreCompacted):
                await store.range("k", revision=20)
            assert (await store.range("k", revision=21)).items[0].value == b"19"

    run(scenario())


def test_history_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HISTORY_BYTES_MAX", 100_000)

    async def scenario() -> None:
        async with opened(":memory:") as store:
            for i in range(20):
                await put(store, f"k{i}", b"x" * 30_000)
            with pytest.raises(StoreCompacted):
                await store.range("k", revision=17)
            assert len((await store.range("k", revision=18)).items) == 17
            await store.txn(Txn((), (Put("huge", b"x" * 1_000_000), Delete("k1"))))
            assert len((await store.range("", revision=22)).items) == 20

    run(scenario())


def test_a_watch_that_is_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_queue, "WATCH_BACKLOG_MAX", 10)

    async def scenario() -> None:
        async with opened(":memory:") as store:
            slow, other, fast = store.watch("k"), store.watch("x"), store.watch("k")
            for _ in range(11):
                await put(store, "k", b"")
                await anext(aiter(fast))
            with pytest.raises(StoreCompacted) as caught:
                await anext(aiter(slow))
            assert caught.value.details["compacted"] == 12
            await put(store, "x", b"")
            assert (await anext(aiter(other))).revision == 13

    run(scenario())
