"""The ordered fenced writer over every store, and over a store that loses, delays and duplicates requests.

`Faults` wraps the store and injects the faults of a network and of an unhealthy etcd. Both were measured: nearly all
transactions reported unavailable had committed, and a transaction behind a stopped member arrived after a later one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepflow.errors import AlreadyExists, Conflict, DataLoss, Invalid, NotFound, StepflowError
from stepflow.store import (
    TXN_BYTES_MAX,
    Delete,
    Put,
    Store,
    StoreUnavailable,
    Txn,
    TxnResult,
    absent,
    created_at,
    delete,
    keys,
    present,
    put,
    version_is,
)
from stepflow.store.flush import FLUSH_BYTES_MAX, FLUSH_OPS_MAX, SUBMISSION_BYTES_MAX
from stepflow.store.sqlite.store import SqliteStore
from stepflow.store.writer import FencedWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conftest import WithStore


class Faults:
    """A store whose next transactions meet faults: `before` (not sent), `after` (the reply is lost), `ok`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.faults: deque[str] = deque()
        self.sent: list[Txn] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def txn(self, txn: Txn) -> TxnResult:
        self.sent.append(txn)
        await self.gate.wait()
        fault = self.faults.popleft() if self.faults else "ok"
        if fault == "before":
            raise StoreUnavailable("TEST", "not sent")
        result = await self._store.txn(txn)
        if fault == "after":
            raise StoreUnavailable("TEST", "reply lost")
        return result


class Owner:
    """What the owner of a writer is told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def submit(self, writer: FencedWriter, name: Any, ops: list[Put | Delete], **options: Any) -> None:
        writer.submit(
            ops,
            on_commit=lambda: self.told.append(name),
            on_reject=lambda error: self.told.append((name, error.reason)),
            **options,
        )

    def put(self, writer: FencedWriter, name: Any, **options: Any) -> None:
        self.submit(writer, name, [Put(f"k/{name}", str(name).encode())], **options)


@asynccontextmanager
async def registered(store: Any, executor_id: str = "e1", **options: Any) -> AsyncIterator[FencedWriter]:
    lease = await store.lease_grant(60)
    writer = await FencedWriter.register(store, executor_id, b"session", lease, **options)
    try:
        yield writer
    finally:
        await writer.close()


async def until(condition: Callable[[], bool]) -> None:
    """Give way until the condition holds; the scenario's own time limit bounds it."""
    while not condition():  # noqa: ASYNC110  # the conditions are of other parts, which have no event for them
        await asyncio.sleep(0.001)


async def content(store: Store) -> dict[str, bytes]:
    return {kv.key: kv.value for kv in (await store.range("k/")).items}


async def cursor_version(store: Store, executor_id: str = "e1") -> int:
    found = await store.get(keys.cursor(executor_id))
    assert found is not None
    return found.version


# -- registration -------------------------------------------------------------------------------------------------


def test_registration_puts_session_and_cursor_on_the_lease_in_one_revision(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        lease = await store.lease_grant(60)
        writer = await FencedWriter.register(store, "e1", b"here", lease)
        session, cursor = await store.get("sessions/executors/e1"), await store.get("cursors/e1")
        assert session is not None
        assert cursor is not None
        assert session.value == b"here"
        assert session.create_revision == cursor.create_revision == writer.token == 2
        assert session.lease == cursor.lease == lease
        await writer.close()

    with_store(scenario)


def test_a_taken_executor_id_is_refused(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store):
            with pytest.raises(AlreadyExists) as caught:
                await FencedWriter.register(store, "e1", b"session", await store.lease_grant(60))
            assert caught.value.reason == "EXECUTOR_ID_TAKEN"

    with_store(scenario)


def test_registration_survives_lost_requests_and_a_lost_reply(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        faulty = Faults(store)
        faulty.faults.extend(["before", "after", "before"])
        async with registered(faulty) as writer:
            assert writer.token == 2
            assert len(set(faulty.sent)) == 1
            owner = Owner()
            owner.put(writer, 1)
            await writer.drain()
            assert owner.told == [1]

    with_store(scenario)


def test_registration_on_a_gone_lease_fails(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(NotFound) as caught:
            await FencedWriter.register(store, "e1", b"session", 4711)
        assert caught.value.reason == "LEASE_GONE"

    with_store(scenario)


# -- order and gathering ------------------------------------------------------------------------------------------


def test_submissions_are_written_and_reported_in_order(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as writer:
            owner = Owner()
            for i in range(500):
                owner.put(writer, i)
            await writer.drain()
            assert owner.told == list(range(500))
            found = [kv for i in range(500) if (kv := await store.get(f"k/{i}")) is not None]
            revisions = [kv.mod_revision for kv in found]
            assert len(found) == 500
            assert revisions == sorted(revisions)
            assert writer.stats.flushes == max(revisions) - min(revisions) + 1 <= 6
            assert await cursor_version(store) == 1 + writer.stats.flushes
            assert (writer.stats.submissions, writer.stats.ops) == (500, 500)
            assert writer.backlog_bytes == 0

    with_store(scenario)


def test_one_transaction_is_in_flight_and_the_next_gathers_meanwhile(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        slow = Faults(store)
        async with registered(slow) as writer:
            owner = Owner()
            slow.gate.clear()
            owner.put(writer, 0)
            await until(lambda: len(slow.sent) == 2)  # the registration and this one
            for i in range(1, 50):
                owner.put(writer, i)
                await asyncio.sleep(0)
            assert len(slow.sent) == 2
            assert writer.backlog_bytes > 49 * 64
            slow.gate.set()
            await writer.drain()
            assert owner.told == list(range(50))
            assert writer.stats.flushes == 2

    with_store(scenario)


def test_a_transaction_holds_a_limited_number_of_operations_and_bytes(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        recorded = Faults(store)
        async with registered(recorded) as writer:
            owner = Owner()
            for i in range(100):
                owner.submit(writer, i, [Put(f"k/{i}/{j}", b"x") for j in range(7)])
            big = b"x" * (FLUSH_BYTES_MAX // 3)
            for i in range(10):
                owner.submit(writer, 100 + i, [Put(f"k/big/{i}", big)])
            owner.submit(writer, 110, [Put("k/alone", b"x" * (SUBMISSION_BYTES_MAX - 100))])
            owner.submit(writer, 111, [Put(f"k/many/{j}", b"") for j in range(127)])
            await writer.drain()
            assert owner.told == list(range(112))
            sizes = [[sum(len(op.value) for op in txn.then), len(txn.then) - 1] for txn in recorded.sent[1:]]
            assert all(count <= FLUSH_OPS_MAX for _, count in sizes[:-1])
            assert all(size <= FLUSH_BYTES_MAX for size, _ in sizes[:-2])
            assert sizes[-2][1] == 1  # above the limit, so alone
            assert sizes[-1][1] == 127

    with_store(scenario)


def test_a_second_write_of_a_key_waits_for_the_next_transaction(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as writer:
            owner = Owner()
            owner.submit(writer, 1, [Put("k/a", b"1"), Put("k/b", b"1")])
            owner.submit(writer, 2, [Put("k/c", b"2")])
            owner.submit(writer, 3, [Put("k/b", b"3")])
            owner.submit(writer, 4, [Delete("k/a")])
            owner.submit(writer, 5, [Put("k/a", b"5")])
            await writer.drain()
            assert owner.told == [1, 2, 3, 4, 5]
            assert writer.stats.flushes == 3
            assert await content(store) == {"k/a": b"5", "k/b": b"3", "k/c": b"2"}

    with_store(scenario)


def test_callbacks_run_in_one_go_and_may_submit_again(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as writer:
            told: list[str] = []

            def chain(i: int) -> None:
                told.append(f"committed {i}")
                if i < 5:
                    writer.submit([Put(f"k/{i}", b"")], on_commit=lambda: chain(i + 1))

            writer.submit([Put("k/first", b"")], on_commit=lambda: chain(0))
            writer.submit([Put("k/second", b"")], on_commit=lambda: told.append("second"))
            assert told == []
            await writer.drain()
            assert told == ["committed 0", "second", *(f"committed {i}" for i in range(1, 6))]

    with_store(scenario)


def test_a_callback_that_raises_does_not_silence_the_next(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as writer:
            reported: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
            owner = Owner()
            writer.submit([Put("k/bad", b"")], on_commit=lambda: 1 // 0)  # type: ignore[arg-type, return-value]  # raises
            owner.put(writer, 1)
            await writer.drain()
            owner.put(writer, 2)
            await writer.drain()
            assert owner.told == [1, 2]
            assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]

    with_store(scenario)


# -- undecided transactions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [["before"], ["after"], ["after", "before"], ["before", "after", "before"], ["after", "after"], ["before"] * 4],
    ids=",".join,
)
def test_an_undecided_transaction_is_sent_again_byte_for_byte_and_written_once(
    with_store: WithStore, faults: list[str]
) -> None:
    async def scenario(store: Store) -> None:
        faulty = Faults(store)
        async with registered(faulty) as writer:
            owner = Owner()
            faulty.faults.extend(faults)
            owner.put(writer, 1)
            await until(lambda: len(faulty.sent) == 2)
            owner.put(writer, 2)  # must not slip into what is sent again
            await writer.drain()
            assert owner.told == [1, 2]
            assert len(set(faulty.sent[1 : 2 + len(faults)])) == 1
            assert writer.stats.resends == len(faults)
            assert [kv.version for kv in (await store.range("k/")).items] == [1, 1]
            assert await cursor_version(store) == 3

    with_store(scenario)


def test_a_delayed_duplicate_changes_nothing(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        faulty = Faults(store)
        async with registered(faulty) as writer:
            owner = Owner()
            for value in (b"old", b"new"):
                owner.submit(writer, value, [Put("k/a", value)])
            await writer.drain()
            revision = await store.revision()
            for txn in faulty.sent:
                assert not (await store.txn(txn)).succeeded
            assert await store.revision() == revision
            assert await content(store) == {"k/a": b"new"}
            owner.put(writer, "on")
            await writer.drain()
            assert owner.told == [b"old", b"new", "on"]

    with_store(scenario)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    faults=st.lists(st.sampled_from(["ok", "before", "after"]), max_size=8),
    bursts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
)
def test_under_any_faults_each_write_happens_once_and_in_order(faults: list[str], bursts: list[int]) -> None:
    async def scenario() -> None:
        store = await SqliteStore.open(":memory:")
        faulty = Faults(store)
        watch = store.watch("k/")
        async with asyncio.timeout(60), registered(faulty) as writer:
            faulty.faults.extend(faults)
            owner = Owner()
            count = 0
            for burst in bursts:
                for _ in range(burst):
                    owner.put(writer, count)
                    count += 1
                await asyncio.sleep(0)
            await writer.drain()
            assert owner.told == list(range(count))
            written: list[bytes] = []
            while len(written) < count:
                written += [event.kv.value for event in (await anext(aiter(watch))).events]
            assert written == [str(i).encode() for i in range(count)]
        await store.close()

    asyncio.run(scenario())


# -- the fence ----------------------------------------------------------------------------------------------------


async def lose_by_revoking(store: Store, writer: FencedWriter) -> None:
    session = await store.get(keys.session_executor(writer.executor_id))
    assert session is not None
    await store.lease_revoke(session.lease)


async def lose_by_deletion(store: Store, writer: FencedWriter) -> None:
    """What the leader does when it saw the executor die."""
    await delete(store, keys.session_executor(writer.executor_id))


async def lose_to_a_successor(store: Store, writer: FencedWriter) -> None:
    await lose_by_revoking(store, writer)
    await put(store, keys.session_executor(writer.executor_id), b"another")
    await put(store, keys.cursor(writer.executor_id), b"1")


async def lose_to_a_namesake(store: Store, writer: FencedWriter) -> None:
    """The session is there again, another one; the cursor is as this writer left it."""
    await delete(store, keys.session_executor(writer.executor_id))
    await put(store, keys.session_executor(writer.executor_id), b"another")


@pytest.mark.parametrize("lose", [lose_by_revoking, lose_by_deletion, lose_to_a_successor, lose_to_a_namesake])
@pytest.mark.parametrize("fault", ["ok", "before", "after"])
def test_a_writer_without_its_session_writes_nothing_and_says_so_once(
    with_store: WithStore, lose: Callable[[Store, FencedWriter], Awaitable[None]], fault: str
) -> None:
    async def scenario(store: Store) -> None:
        faulty = Faults(store)
        owner = Owner()
        async with registered(faulty, on_lost=lambda: owner.told.append("lost")) as writer:
            owner.put(writer, "kept")
            await writer.drain()
            await lose(store, writer)
            revision = await store.revision()
            faulty.faults.append(fault)
            owner.submit(writer, 1, [Put("k/a", b"")])
            owner.submit(writer, 2, [Put("k/a", b"")])
            with pytest.raises(Conflict) as caught:
                await writer.drain()
            assert caught.value.reason == "LEASE_LOST"
            assert writer.lost.is_set()
            owner.put(writer, 3)
            await until(lambda: len(owner.told) == 5)
            assert owner.told == ["kept", "lost", (1, "LEASE_LOST"), (2, "LEASE_LOST"), (3, "LEASE_LOST")]
            assert await store.revision() == revision
            assert await content(store) == {"k/kept": b"kept"}

    with_store(scenario)


def test_a_forged_old_token_cannot_write(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as old:
            await lose_by_revoking(store, old)
            async with registered(store) as new:
                assert new.token > old.token
                zombie = FencedWriter(store, "e1", old.token)
                owner = Owner()
                owner.put(zombie, "zombie")
                owner.put(new, "new")
                await asyncio.gather(zombie.drain(), new.drain(), return_exceptions=True)
                assert sorted(map(str, owner.told)) == ["('zombie', 'LEASE_LOST')", "new"]
                assert await content(store) == {"k/new": b"new"}
                await zombie.close()

    with_store(scenario)


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_a_second_writer_under_the_same_token_is_fenced_by_the_cursor(with_store: WithStore, ahead: int) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as writer:
            owner = Owner()
            for i in range(ahead):
                owner.put(writer, i)
                await writer.drain()
            impostor = FencedWriter(store, "e1", writer.token)  # its cursor is behind by that much
            owner.put(impostor, "impostor")
            with pytest.raises(Conflict):
                await impostor.drain()
            owner.put(writer, "on")
            await writer.drain()
            assert owner.told == [*range(ahead), ("impostor", "LEASE_LOST"), "on"]
            await impostor.close()

    with_store(scenario)


def test_a_transaction_that_arrives_after_the_loss_changes_nothing(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        slow = Faults(store)
        async with registered(slow) as writer:
            owner = Owner()
            slow.gate.clear()
            owner.put(writer, "late")
            await until(lambda: len(slow.sent) == 2)
            await lose_by_deletion(store, writer)
            slow.gate.set()
            await asyncio.wait_for(writer.lost.wait(), 10)
            assert owner.told == [("late", "LEASE_LOST")]
            assert await content(store) == {}

    with_store(scenario)


def test_nothing_is_sent_while_the_executor_doubts_its_lease(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        recorded = Faults(store)
        valid = True
        asked = 0

        def clock_valid() -> bool:
            nonlocal asked
            asked += 1
            return valid

        async with registered(recorded, clock_valid=clock_valid) as writer:
            owner = Owner()
            owner.put(writer, 1)
            await writer.drain()
            valid = False
            owner.put(writer, 2)
            await until(lambda: asked > 3)
            assert len(recorded.sent) == 2
            assert owner.told == [1]
            valid = True
            await writer.drain()
            assert owner.told == [1, 2]

    with_store(scenario)


def test_a_resend_also_asks_the_lease_clock(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        faulty = Faults(store)
        answers = [True, False, False]
        async with registered(faulty, clock_valid=lambda: answers.pop(0) if answers else True) as writer:
            faulty.faults.append("before")
            owner = Owner()
            owner.put(writer, 1)
            await until(lambda: not answers)
            assert len(faulty.sent) == 2
            await writer.drain()
            assert owner.told == [1]

    with_store(scenario)


def test_a_doubting_writer_finds_out_that_its_session_is_gone(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store, clock_valid=lambda: False) as writer:
            owner = Owner()
            owner.put(writer, 1)
            await lose_by_revoking(store, writer)
            await asyncio.wait_for(writer.lost.wait(), 10)
            assert owner.told == [(1, "LEASE_LOST")]

    with_store(scenario)


# -- rejections ---------------------------------------------------------------------------------------------------


def test_a_submission_whose_compare_fails_is_rejected_alone(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        await put(store, "there", b"")
        async with registered(store) as writer:
            owner = Owner()
            owner.put(writer, 1)
            owner.put(writer, 2, compares=(present("there"),))
            owner.put(writer, 3, compares=(absent("there"),))
            owner.put(writer, 4, compares=(created_at("there", 2),))
            owner.put(writer, 5)
            await writer.drain()
            assert owner.told == [1, 2, (3, "COMPARE_FAILED"), 4, 5]
            assert sorted(await content(store)) == ["k/1", "k/2", "k/4", "k/5"]

    with_store(scenario)


def test_a_compare_sees_the_submissions_before_it(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as writer:
            owner = Owner()
            owner.submit(writer, 1, [Put("k/a", b"1")])
            owner.submit(writer, 2, [Put("k/b", b"2")], compares=(version_is("k/a", 1),))
            owner.submit(writer, 3, [Put("k/a", b"3")])
            owner.submit(writer, 4, [Put("k/c", b"4")], compares=(version_is("k/a", 1),))
            await writer.drain()
            assert owner.told == [1, 2, 3, (4, "COMPARE_FAILED")]

    with_store(scenario)


@pytest.mark.parametrize("faults", [[], ["after"], ["before", "after", "after"]], ids=lambda f: ",".join(f) or "none")
def test_what_the_store_refuses_is_found_out_and_the_others_are_written(
    with_store: WithStore, faults: list[str]
) -> None:
    async def scenario(store: Store) -> None:
        faulty = Faults(store)
        async with registered(faulty) as writer:
            owner = Owner()
            faulty.faults.extend(faults)
            for i in range(1, 4):
                owner.put(writer, i)
            owner.submit(writer, "lease", [Put("k/x", b"", lease=4711), Put("k/y", b"")])
            owner.put(writer, 4)
            owner.submit(writer, "missing", [Put("k/z", b"", ignore_lease=True)])
            owner.put(writer, 5)
            await writer.drain()
            owner.put(writer, 6)
            await writer.drain()
            assert owner.told == [1, 2, 3, ("lease", "LEASE_GONE"), 4, ("missing", "KEY_NOT_FOUND"), 5, 6]
            assert sorted(await content(store)) == [f"k/{i}" for i in range(1, 7)]
            assert writer.backlog_bytes == 0

    with_store(scenario)


@pytest.mark.parametrize(
    ("ops", "reason"),
    [
        ([Put("k/a", b""), Put("k/a", b"")], "DUPLICATE_KEY"),
        ([Put("k/a", b""), Delete("k/a")], "DUPLICATE_KEY"),
        ([Delete("k/a"), Delete("k/a")], "DUPLICATE_KEY"),
        ([Put("cursors/e1", b"")], "DUPLICATE_KEY"),
        ([Put("", b"")], "EMPTY_KEY"),
        ([Put("k/a", b"x" * TXN_BYTES_MAX)], "VALUE_TOO_LARGE"),
        ([Put("k/a", b"x" * (SUBMISSION_BYTES_MAX - 10))], "TXN_TOO_LARGE"),
        ([Put(f"k/{i}", b"") for i in range(128)], "TXN_TOO_MANY_OPS"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_impossible_submission_is_rejected_before_it_is_sent(
    with_store: WithStore, ops: list[Put | Delete], reason: str
) -> None:
    async def scenario(store: Store) -> None:
        recorded = Faults(store)
        async with registered(recorded) as writer:
            owner = Owner()
            owner.submit(writer, "bad", ops)
            assert owner.told == []  # never from inside submit
            owner.put(writer, "good")
            await writer.drain()
            assert sorted(map(str, owner.told)) == sorted([str(("bad", reason)), "good"])
            assert len(recorded.sent) == 2

    with_store(scenario)


def test_a_rejection_that_nobody_hears_is_reported(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as writer:
            reported: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
            writer.submit([Put("", b"")], on_commit=lambda: None)
            await until(lambda: bool(reported))
            assert isinstance(reported[0]["exception"], Invalid)

    with_store(scenario)


def test_damage_ends_the_writer_instead_of_a_loop_of_resends(with_store: WithStore) -> None:
    class Damaged(Faults):
        async def txn(self, txn: Txn) -> TxnResult:
            if self.faults:
                raise DataLoss("STORE_CORRUPT", "damaged")
            return await super().txn(txn)

    async def scenario(store: Store) -> None:
        damaged = Damaged(store)
        async with registered(damaged) as writer:
            damaged.faults.append("damage")
            owner = Owner()
            owner.put(writer, 1)
            await asyncio.wait_for(writer.lost.wait(), 10)
            assert owner.told == [(1, "STORE_CORRUPT")]

    with_store(scenario)


# -- the end ------------------------------------------------------------------------------------------------------


def test_closing_rejects_what_is_not_decided(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        slow = Faults(store)
        async with registered(slow) as writer:
            owner = Owner()
            slow.gate.clear()
            owner.put(writer, 1)
            await until(lambda: len(slow.sent) == 2)
            owner.put(writer, 2)
            await writer.close()
            await writer.close()
            owner.put(writer, 3)
            await until(lambda: len(owner.told) == 3)
            assert owner.told == [(i, "WRITER_CLOSED") for i in (1, 2, 3)]
            assert not writer.lost.is_set()
            with pytest.raises(StepflowError):
                await writer.drain()

    with_store(scenario)


def test_draining_an_idle_writer_returns_at_once(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as writer:
            await writer.drain()
            assert writer.stats.flushes == 0

    with_store(scenario)


def test_a_writer_ends_when_the_store_has_forgotten_its_writes(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        lost: list[str] = []
        async with registered(store, on_lost=lambda: lost.append("lost")) as writer:
            for value in (b"1", b"2"):
                writer.submit([Put("k", value)], on_commit=lambda: None)
                await writer.drain()
            await writer.check()
            assert not writer.lost.is_set()

            # As in an older copy: the session stands, and the cursor counts fewer writes.
            cursor = await store.get(keys.cursor("e1"))
            assert cursor is not None
            await delete(store, keys.cursor("e1"))
            await put(store, keys.cursor("e1"), cursor.value, lease=cursor.lease)
            await writer.check()
            assert lost == ["lost"]
            with pytest.raises(Conflict) as ended:
                await writer.drain()
            assert ended.value.reason == "LEASE_LOST"

    with_store(scenario)


def test_a_check_beside_writes_in_flight_ends_nothing(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        async with registered(store) as writer:
            for number in range(50):
                writer.submit([Put(f"k{number}", b"")], on_commit=lambda: None)
                await writer.check()
            await writer.drain()
            assert not writer.lost.is_set()

    with_store(scenario)
