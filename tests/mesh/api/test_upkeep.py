"""Segments over time: rewritten, merged, without journals, and removed by age and by bytes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from support.archive import FAR_MS, AtStep, Crash, check_left, opened
from support.corpus import CORPUS
from support.packing import manifest_of, publish, run_world, store_run

from control_plane.archive import rewriting, upkeep
from control_plane.archive.format import object_name
from control_plane.archive.policy import RetentionPolicy
from control_plane.archive.tombstones import finish_deletions
from control_plane.deletion import delete_run
from control_plane.signals import signal
from stepflow.errors import DataLoss, FailedPrecondition, Invalid, NotFound, Unavailable
from stepflow.store import keys, put

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.archive import PackingWorld, Term

HOUR_MS = 3600 * 1000
FOR_EVER_S = 1e15


@pytest.fixture(params=["sqlite", "etcd"])
def world_of(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Give a function that opens a world over an empty store."""
    etcd = request.getfixturevalue("etcd") if request.param == "etcd" else None
    return lambda **policy: opened(etcd, RetentionPolicy(**{"runs_s": FOR_EVER_S, "journals_s": FOR_EVER_S} | policy))


def within(work: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(110):
            await work

    asyncio.run(bounded())


async def pack_each(world: PackingWorld, count: int, first: int = 1) -> Term:
    """Pack runs, each into a segment of its own; return the leader."""
    for number in range(first, first + count):
        made = run_world(number, CORPUS["large values" if number % 2 else "map"], inputs=[{"n": 1}])
        made.run()
        world.run_ids.append(await store_run(world.store, world.blobs, made, [1], created_at_ms=900_000 + number))
        term = await world.leaders.term()
        await term.begin()
        await term.packer.pack(FAR_MS, FAR_MS)
    return term


async def delete(world: PackingWorld, run_id: str) -> None:
    await delete_run(world.control.run_store, world.blobs, run_id, world.control.run_store.is_packed)
    world.run_ids.remove(run_id)


async def last_end_ms(world: PackingWorld) -> int:
    return max([(await world.control.get_run(run_id)).completed_at_ms or 0 for run_id in world.run_ids])


def scopes(world: PackingWorld) -> set[str]:
    """Return the runs with blobs."""
    return {path.split("/")[1] for path in world.backend._blobs if path.startswith("blobs/")} - {"shared"}


def test_small_segments_are_merged_and_answer_as_before(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world:
            await pack_each(world, upkeep.MERGED)
            expected = await world.answers()
            assert len(await world.manifests()) == upkeep.MERGED
            await world.leaders.undisturbed()
            assert len(await world.manifests()) == 1
            assert await world.answers() == expected
            await check_left(world)

    within(work())


def test_a_leader_that_dies_at_any_step_of_a_rewrite_loses_nothing(world_of: Any) -> None:
    async def crash() -> None:
        raise Crash

    async def died_at(step: int) -> bool:
        async with world_of() as world:
            await pack_each(world, upkeep.MERGED)
            expected = await world.answers()
            hook = AtStep(step, crash)
            try:
                await (await world.leaders.term(hook)).all()
            except Crash:
                await world.glance()
            await world.leaders.undisturbed()
            assert await world.answers() == expected
            await check_left(world)
            return hook.reached

    async def work() -> None:
        step = 5
        while await died_at(step):
            step += 11
        assert step > 20

    within(work())


def test_deleted_runs_leave_a_segment_that_is_mostly_empty(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world:
            await world.fill("chain", "map", "diamond", "large values")
            await world.leaders.undisturbed()
            before = world.leaders.objects()
            await delete(world, world.run_ids[3])
            await world.leaders.undisturbed()
            assert world.leaders.objects() == before, "a quarter is gone: not worth the copying"

            for run_id in world.run_ids[1:]:
                await delete(world, run_id)
            expected = await world.answers()
            await world.leaders.undisturbed()
            assert world.leaders.objects().isdisjoint(before)
            assert await world.answers() == expected
            await check_left(world)

            await delete(world, world.run_ids[0])
            await world.leaders.undisturbed()
            assert world.leaders.objects() == set() == await world.manifests()

    within(work())


def test_journals_go_before_the_rest_of_packed_runs(world_of: Any) -> None:
    async def work() -> None:
        async with world_of(journals_s=24 * 3600.0) as world:
            await world.fill()
            await world.leaders.undisturbed(0)
            end_ms = await last_end_ms(world)
            items = [await world.control.items(run_id) for run_id in world.run_ids]
            objects = world.leaders.objects()

            await world.leaders.undisturbed(end_ms + 23 * HOUR_MS)
            assert world.leaders.objects() == objects
            await world.leaders.undisturbed(end_ms + 25 * HOUR_MS)
            assert world.leaders.objects().isdisjoint(objects)
            assert [await world.control.items(run_id) for run_id in world.run_ids] == items
            for run_id in world.run_ids:
                assert not (await world.control.run_store.range(keys.journal_of_run(run_id))).items
            await world.glance()
            objects = world.leaders.objects()
            await world.leaders.undisturbed(end_ms + 26 * HOUR_MS)
            assert world.leaders.objects() == objects, "once"
            await check_left(world)

    within(work())


def test_old_runs_go_with_their_blobs_and_young_ones_stay(world_of: Any) -> None:
    async def work() -> None:
        async with world_of(runs_s=7 * 24 * 3600.0, journals_s=7 * 24 * 3600.0) as world:
            await pack_each(world, 3)
            assert scopes(world)
            end_ms = await last_end_ms(world)
            await world.leaders.undisturbed(end_ms + 167 * HOUR_MS)
            await world.glance()
            await world.leaders.undisturbed(end_ms + 169 * HOUR_MS)
            for run_id in world.run_ids:
                with pytest.raises(NotFound):
                    await world.control.get_run(run_id)
            assert scopes(world) == set() == world.leaders.objects()
            world.run_ids.clear()
            await world.glance()
            await check_left(world)

    within(work())


def test_a_run_that_got_the_id_of_an_expiring_one_keeps_its_blobs(world_of: Any) -> None:
    async def work() -> None:
        async with world_of(runs_s=3600.0, journals_s=3600.0) as world:
            await pack_each(world, 3)
            again, packed_again = (run_world(number, CORPUS["large values"], inputs=[{"n": 1}]) for number in (1, 3))
            assert {again.run_id, packed_again.run_id} <= scopes(world)
            term = await world.leaders.term()
            await term.begin()
            await term.upkeep._expire(FAR_MS)
            for made in (packed_again, again):
                made.run()
                await store_run(world.store, world.blobs, made, [1])
                if made is packed_again:
                    await term.due_runs.list_all(world.store)
                    await term.packer.pack(FAR_MS, FAR_MS)
            expected = await world.answers([again.run_id, packed_again.run_id])

            while await term.upkeep.step(0):
                pass
            assert len(await world.manifests()) == 1
            assert await world.answers([again.run_id, packed_again.run_id]) == expected

    within(work())


def test_a_large_signal_to_an_ended_run_leaves_no_blob(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world:
            await world.fill("chain")
            for _ in ("in the store", "packed"):
                with pytest.raises(FailedPrecondition) as refused:
                    await signal(world.control.run_store, world.blobs, world.run_ids[0], "go", b'"%s"' % (b"x" * 9000))
                assert refused.value.reason == "RUN_ENDED"
                assert scopes(world) == set()
                await world.leaders.undisturbed(0)

    within(work())


def test_a_leader_that_dies_at_any_step_of_an_expiry_leaves_nothing(world_of: Any) -> None:
    async def crash() -> None:
        raise Crash

    async def died_at(step: int) -> bool:
        async with world_of(runs_s=3600.0, journals_s=3600.0) as world:
            await world.fill()
            await world.leaders.undisturbed(0)
            hook = AtStep(step, crash)
            with contextlib.suppress(Crash):  # a later leader goes on
                await (await world.leaders.term(hook)).all()
            await world.leaders.undisturbed()
            assert scopes(world) == set() == world.leaders.objects()
            world.run_ids.clear()
            await world.glance()
            await check_left(world)
            return hook.reached

    async def work() -> None:
        step = 0
        while await died_at(step):
            step += 1
        assert step > 8

    within(work())


def test_over_the_bound_on_bytes_the_runs_that_ended_first_go_and_no_run_is_read(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world:
            term = await pack_each(world, 6)
            sizes = [manifest.bytes for _, manifest in sorted(term.segments.manifests.items())]
            kept = sum(sizes[2:])
            world.leaders.policy = RetentionPolicy(runs_s=FOR_EVER_S, journals_s=FOR_EVER_S, packed_bytes_max=kept)
            calls: list[str] = []

            async def count(name: str) -> None:
                calls.append(name)

            term = await world.leaders.term(count)
            await term.begin()
            calls.clear()
            while await term.upkeep.step(0):
                pass
            assert sum(manifest.bytes for manifest in term.segments.manifests.values()) <= kept
            reads = [name for name in calls if name in ("before get", "before range")]
            assert reads == [], "manifests are in memory, and runs are not looked at"
            assert calls.count("before txn") <= 2 * 3, "one to mark; per segment the fence, and the manifest"

            gone, world.run_ids = world.run_ids[:2], world.run_ids[2:]
            await world.glance()
            for run_id in gone:
                with pytest.raises(NotFound):
                    await world.control.get_run(run_id)

    within(work())


def test_an_object_of_a_crash_goes_after_an_hour_and_a_known_one_never(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world:
            await world.fill()
            term = await world.leaders.undisturbed()

            async def content() -> Any:
                yield b"half written"

            lost = term.segments.new_id()
            await world.blobs.objects.write(object_name(lost), content())
            written_s = world.backend._dates[object_name(lost)]
            assert await term.upkeep.delete_orphans(written_s + 3590) == []
            assert await term.upkeep.delete_orphans(written_s + 3610) == [lost]
            await world.glance()

    within(work())


def test_meshes_that_share_a_blob_store_keep_each_others_segments(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world, world_of() as other:
            other.backend = other.leaders.backend = world.backend
            other.blobs = world.blobs
            await world.fill()
            await world.leaders.undisturbed()
            objects = world.leaders.objects()

            # The second store is empty: of another mesh, or of this one after its etcd was wiped.
            term = await other.leaders.undisturbed()
            assert await term.upkeep.delete_orphans(FAR_MS / 1000) == []
            assert world.leaders.objects() == objects
            await world.glance()

    within(work())


def test_a_blob_store_that_refuses_objects_delays_packing_and_loses_nothing(
    world_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with world_of() as world:
            await world.fill()
            expected = await world.answers()

            async def refuse(*_: Any) -> None:
                raise Unavailable("BLOB_STORE_FULL", "no space is left")

            with monkeypatch.context() as patch:
                patch.setattr(world.backend, "write_stream", refuse)
                term = await world.leaders.term()
                await term.begin()
                for _ in range(3):
                    with pytest.raises(Unavailable):
                        await term.packer.pack(FAR_MS, FAR_MS)
                    assert len(term.due_runs) == len(world.run_ids)
                    await world.glance()
            await term.work()
            assert await world.answers() == expected
            await check_left(world)

    within(work())


def test_a_former_leader_changes_nothing(world_of: Any) -> None:
    async def work() -> None:
        async with world_of(runs_s=1.0, journals_s=1.0) as world:
            await world.fill()
            expected = await world.answers()
            former = await world.leaders.term()
            await former.begin()
            await world.leaders.term()
            with pytest.raises(FailedPrecondition) as refused:
                await former.packer.pack(FAR_MS, FAR_MS)
            assert refused.value.reason == "NOT_LEADING"
            assert await world.manifests() == set()

            former = await world.leaders.undisturbed(0)
            await world.leaders.term()
            with pytest.raises(FailedPrecondition) as refused:
                await former.upkeep.step(FAR_MS)
            assert refused.value.reason == "NOT_LEADING"
            assert await world.answers() == expected

    within(work())


def test_a_deleted_run_stays_gone_if_its_segment_cannot_be_read_for_a_moment(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world:
            await world.fill()
            await world.leaders.undisturbed()
            gone = world.run_ids[0]
            await delete(world, gone)

            contents = world.backend._blobs
            path = next(path for path in contents if path.startswith("segments/"))
            whole = contents[path]
            for damaged in (None, (whole[0][:-1], whole[1])):
                contents.pop(path)
                if damaged is not None:
                    contents[path] = damaged
                term = await world.leaders.term()
                await term.begin()
                with pytest.raises((NotFound, DataLoss)):
                    await finish_deletions(world.store, term.segments, term.fence)
                contents[path] = whole
                with pytest.raises(NotFound):
                    await world.control.get_run(gone)

            await world.leaders.undisturbed()
            with pytest.raises(NotFound):
                await world.control.get_run(gone)
            assert not (await world.store.range(keys.DELETED)).items
            await world.glance()

    within(work())


def test_what_a_segment_names_counts_as_unknown_while_it_cannot_be_read(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world:
            await world.fill()
            term = await world.leaders.undisturbed()
            assert await term.segments.named_blobs() is not None

            # 1. The object is away.
            (path,) = (path for path in world.backend._blobs if path.startswith("segments/"))
            whole = world.backend._blobs.pop(path)
            term = await world.leaders.term()
            await term.begin()
            assert await term.segments.named_blobs() is None
            world.backend._blobs[path] = whole

            # 2. The manifest is damaged: neither the work stops nor is the object an orphan.
            (name,) = await world.manifests()
            manifest = await manifest_of(world.store, name)
            await put(world.store, keys.segment(name), b"\xff")
            term = await world.leaders.undisturbed()
            assert await term.segments.named_blobs() is None
            assert await term.upkeep.delete_orphans(FAR_MS / 1000) == []
            await publish(world.store, {name: manifest})
            await world.glance()

    within(work())


def test_a_run_in_two_segments_is_merged_into_one(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world:
            await pack_each(world, upkeep.MERGED - 1)
            expected = await world.answers()
            first = next(iter(await world.manifests()))
            copy = f"{int(first[:13]) + 10**9:013d}{first[13:]}"
            world.backend._blobs[object_name(copy)] = world.backend._blobs[object_name(first)]
            await publish(world.store, {copy: await manifest_of(world.store, first)})
            assert await world.answers() == expected

            await world.leaders.undisturbed()
            assert len(await world.manifests()) == 1
            assert await world.answers() == expected

    within(work())


def test_a_run_that_cannot_be_decoded_does_not_keep_others_from_being_rewritten(world_of: Any) -> None:
    async def work() -> None:
        async with world_of(journals_s=3600.0) as world:
            await world.fill()
            await put(world.store, keys.results(world.run_ids[0], 0), b"\xff damaged")
            await world.leaders.undisturbed(0)
            await pack_each(world, 1, first=9)
            await world.leaders.undisturbed(await last_end_ms(world) + 2 * HOUR_MS)
            for run_id in world.run_ids:
                assert not (await world.control.run_store.range(keys.journal_of_run(run_id))).items
            kept = await world.control.run_store.get(keys.results(world.run_ids[0], 0))
            assert kept is not None
            assert kept.value == b"\xff damaged"

    within(work())


def test_a_defect_in_a_rewrite_holds_up_only_its_segments(world_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = upkeep.rewrite

    async def work() -> None:
        async with world_of(journals_s=3600.0) as world:
            await pack_each(world, 2)
            bad = min(await world.manifests())

            async def fail(blobs: Any, segments: Any, sources: Any, **options: Any) -> str:
                if bad in sources:
                    raise AssertionError("a defect")
                return await real(blobs, segments, sources, **options)

            monkeypatch.setattr(upkeep, "rewrite", fail)
            await world.leaders.undisturbed(await last_end_ms(world) + 2 * HOUR_MS)
            stripped = {name: (await manifest_of(world.store, name)).stripped for name in await world.manifests()}
            assert stripped.pop(bad) is False
            assert list(stripped.values()) == [True]

    within(work())


def test_large_bodies_are_rewritten_in_pieces(world_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "PIECE_BYTES", 100)
    test_small_segments_are_merged_and_answer_as_before(world_of)
    test_journals_go_before_the_rest_of_packed_runs(world_of)


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    for options in ({"journals_s": 10, "runs_s": 5}, {"linger_s": -1}, {"packed_bytes_max": -1}):
        with pytest.raises(Invalid) as refused:
            RetentionPolicy(**options)
        assert refused.value.reason == "RETENTION_INVALID"


def test_runs_linger_less_while_the_store_is_short_of_room() -> None:
    policy = RetentionPolicy(store_bytes_max=1000, linger_s=30)
    assert [policy.linger_at(size) for size in (0, 500, 750, 1000, 2000)] == [30, 30, 15, 0, 0]
