"""Segments: what a builder is given is what readers decode, and damage is found."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.archive.builder import LIST_BLOCK_RUNS, SegmentBuilder, StepLists, time_spans
from control_plane.archive.format import (
    FINGERPRINT_BYTES,
    MAGIC,
    SegmentTail,
    decode_index,
    decode_list,
    decode_step_index,
    decode_tail,
    fingerprint,
    list_order,
    run_of,
)
from stepflow.errors import DataLoss, FailedPrecondition
from stepflow.mesh.v1 import journal_pb2, segments_pb2, state_pb2
from stepflow.store import KeyValue, keys

NOW_MS = 1_700_000_000_000


def key_values(run_id: str, created_at_ms: int, values: list[bytes], partitions: int = 1) -> list[KeyValue]:
    """Return an ended run: record, statuses, and `values` as its journal."""
    record = state_pb2.RunRecord(
        flow_id="f", flow_name="name", created_at_ms=created_at_ms, items_total=partitions, items_per_partition=1
    )
    items = [KeyValue(keys.run(run_id), record.SerializeToString(), 7, 7, 1)]
    for partition in range(partitions):
        status = state_pb2.PartitionStatus(
            status=journal_pb2.RUN_STATUS_FAILED if partition else journal_pb2.RUN_STATUS_COMPLETED,
            items_total=1,
            items_completed=int(partition == 0),
            items_failed=int(partition > 0),
            created_at_ms=created_at_ms,
            completed_at_ms=created_at_ms + 5 + partition,
        )
        items.append(KeyValue(keys.status(run_id, partition), status.SerializeToString(), 7, 9 + partition, 2))
    items += [KeyValue(keys.journal(run_id, 0, seq), value, 8 + seq, 8 + seq, 1) for seq, value in enumerate(values)]
    return items


class Decoded:
    """A whole object, with its parts decoded."""

    def __init__(self, content: bytes, manifest: segments_pb2.SegmentManifest) -> None:
        self.content = content
        self.tail: SegmentTail = decode_tail(content[manifest.tail_offset :])
        self.listed = [
            listed
            for place in self.tail.lists
            for listed in decode_list(place, content[place.offset : place.offset + place.bytes])
        ]

    def run(self, run_id: str) -> list[KeyValue]:
        number = self.tail.number(run_id)
        assert number is not None
        place = self.tail.body(number)
        raw = self.content[place.offset : place.offset + place.bytes]
        return list(decode_index(run_id, place, raw[-place.index_bytes :]).key_values(raw))


def built(runs: dict[str, list[KeyValue]]) -> tuple[bytes, segments_pb2.SegmentManifest]:
    builder = SegmentBuilder()
    content = b"".join(builder.add_run(run_id, items) for run_id, items in runs.items()) + builder.finish()
    return content, builder.manifest()


relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy

run_ids = st.integers(min_value=1, max_value=2**128 - 1).map(lambda value: str(UUID(int=value)))
runs_to_pack = st.dictionaries(
    run_ids,
    st.tuples(st.integers(NOW_MS, NOW_MS + 50), st.lists(st.binary(max_size=40), max_size=4), st.integers(1, 3)),
    min_size=1,
    max_size=12,
).map(lambda runs: {run_id: key_values(run_id, *facts) for run_id, facts in runs.items()})


@relaxed
@given(runs_to_pack)
def test_a_segment_has_exactly_the_key_values_that_were_packed(runs: dict[str, list[KeyValue]]) -> None:
    content, manifest = built(runs)
    decoded = Decoded(content, manifest)
    for run_id, items in runs.items():
        assert decoded.run(run_id) == sorted(items, key=lambda item: item.key)
    assert list(decoded.tail.run_ids) == sorted(runs)
    assert decoded.tail.number("no run") is None

    assert manifest.bytes == len(content)
    assert (manifest.runs, manifest.first_run_id, manifest.last_run_id) == (len(runs), min(runs), max(runs))
    marks = bytes(manifest.fingerprints)
    prints = [marks[at : at + FINGERPRINT_BYTES] for at in range(0, 4 * len(runs), FINGERPRINT_BYTES)]
    assert prints == sorted(map(fingerprint, runs))


@relaxed
@given(runs_to_pack)
def test_lists_have_each_run_once_in_the_order_of_the_index_by_age(runs: dict[str, list[KeyValue]]) -> None:
    content, manifest = built(runs)
    decoded = Decoded(content, manifest)
    by_age = sorted(keys.by_age(listed.run_id, listed.created_at_ms) for listed in decoded.listed)
    assert [keys.by_age(listed.run_id, listed.created_at_ms) for listed in decoded.listed] == by_age
    assert [decoded.tail.run_ids[listed.number] for listed in decoded.listed] == [
        listed.run_id for listed in decoded.listed
    ]
    assert {listed.run_id for listed in decoded.listed} == runs.keys()
    assert manifest.ended_last_ms == max(listed.ended_at_ms for listed in decoded.listed)
    assert all(
        any(span.first_ms <= listed.created_at_ms <= span.last_ms for span in manifest.created)
        for listed in decoded.listed
    )


@relaxed
@given(runs_to_pack, st.data())
def test_lists_of_steps_change_nothing_else_of_a_run(runs: dict[str, list[KeyValue]], data: st.DataObject) -> None:
    with_steps = data.draw(st.dictionaries(st.sampled_from(sorted(runs)), st.binary(max_size=40)))
    index = segments_pb2.StepIndex(partitions=[segments_pb2.PartitionSteps(rows_total=7)])
    builder = SegmentBuilder()
    chunks = [
        builder.add_run(run_id, items, steps=StepLists(with_steps[run_id], index) if run_id in with_steps else None)
        for run_id, items in runs.items()
    ]
    content = b"".join([*chunks, builder.finish()])
    decoded = Decoded(content, builder.manifest())
    if not with_steps:
        assert content == built(runs)[0]

    for run_id, items in runs.items():
        number = decoded.tail.number(run_id)
        assert number is not None
        place = decoded.tail.body(number)
        *others, last = decoded.run(run_id)
        if run_id not in with_steps:
            assert [*others, last] == sorted(items, key=lambda item: item.key)
            assert not place.step_index_bytes
            continue

        assert others == sorted(items, key=lambda item: item.key)
        assert last.value.startswith(with_steps[run_id])
        raw = content[place.step_index_offset : place.index_offset]
        found = decode_step_index(place, raw)
        assert found.bytes == len(with_steps[run_id])
        assert found.partitions == index.partitions
        with pytest.raises(DataLoss):
            decode_step_index(place, raw[:-1] + bytes([raw[-1] ^ 1]))


@relaxed
@given(runs_to_pack, runs_to_pack)
def test_a_copied_run_reads_as_before(runs: dict[str, list[KeyValue]], others: dict[str, list[KeyValue]]) -> None:
    content, manifest = built(runs)
    decoded = Decoded(content, manifest)
    others = {run_id: items for run_id, items in others.items() if run_id not in runs}

    builder = SegmentBuilder()
    chunks = [builder.add_run(run_id, items) for run_id, items in others.items()]
    for listed in decoded.listed:
        place = decoded.tail.body(listed.number)
        builder.copy_run(listed, place)
        chunks.append(content[place.offset : place.offset + place.bytes])
    chunks.append(builder.finish())

    again = Decoded(b"".join(chunks), builder.manifest())
    for run_id, items in (runs | others).items():
        assert again.run(run_id) == sorted(items, key=lambda item: item.key)
    for listed in again.listed:
        listed.number = 0
    for listed in decoded.listed:
        listed.number = 0
        assert listed in again.listed


def test_a_run_may_be_added_in_parts() -> None:
    run_id = str(UUID(int=1))
    items = sorted(key_values(run_id, NOW_MS, [b"a" * 100, b"b"], partitions=3), key=lambda item: item.key)
    builder = SegmentBuilder()
    builder.begin_run(run_id, has_blobs=False)
    chunks = [builder.add_items([item]) for item in items]
    content = b"".join([*chunks, builder.end_run(), builder.finish()])
    decoded = Decoded(content, builder.manifest())
    assert decoded.run(run_id) == items
    (listed,) = decoded.listed
    assert (listed.partitions, listed.items_completed, listed.items_failed) == (3, 1, 2)
    assert (listed.status, listed.ended_at_ms, listed.has_blobs) == (journal_pb2.RUN_STATUS_FAILED, NOW_MS + 7, False)


def test_list_blocks_are_bounded_and_found_by_position() -> None:
    count = 2 * LIST_BLOCK_RUNS + 10
    runs = {str(UUID(int=n)): key_values(str(UUID(int=n)), NOW_MS + n // 2, []) for n in range(1, count + 1)}
    decoded = Decoded(*built(runs))
    assert [place.runs for place in decoded.tail.lists] == [LIST_BLOCK_RUNS, LIST_BLOCK_RUNS, 10]

    orders = [list_order(listed.created_at_ms, listed.run_id) for listed in decoded.listed]
    for index in (0, 1, LIST_BLOCK_RUNS - 1, LIST_BLOCK_RUNS, count - 1):
        following = orders[index]
        block = decoded.tail.list_behind(following)
        assert block == index // LIST_BLOCK_RUNS
        assert decoded.tail.list_position(decoded.listed[index].number) == divmod(index, LIST_BLOCK_RUNS)
        assert bisect_right(orders, following) == index + 1
    assert decoded.tail.list_behind((0, "")) == 3


def test_large_labels_and_damaged_records_are_left_to_the_body() -> None:
    first, second = str(UUID(int=1)), str(UUID(int=2))
    labelled = state_pb2.RunRecord(created_at_ms=NOW_MS, items_per_partition=1, labels_json=b'"%s"' % (b"x" * 5000))
    content, manifest = built(
        {
            first: [KeyValue(keys.run(first), labelled.SerializeToString(), 1, 1, 1)],
            second: [KeyValue(keys.run(second), b"\xff", 1, 1, 1), *key_values(second, NOW_MS + 9, [])[1:]],
        }
    )
    newer, older = Decoded(content, manifest).listed
    assert (newer.run_id, newer.created_at_ms, newer.shown) == (second, NOW_MS + 9, b"")
    assert (older.run_id, older.created_at_ms, older.shown) == (first, NOW_MS, b"")


@settings(relaxed, max_examples=300)
@given(st.data())
def test_damage_is_found(data: st.DataObject) -> None:
    run_id = str(UUID(int=1))
    items = sorted(key_values(run_id, NOW_MS, [b"value", b"more"]), key=lambda item: item.key)
    content, manifest = built({run_id: items, str(UUID(int=2)): key_values(str(UUID(int=2)), NOW_MS, [])})
    at = data.draw(st.integers(0, len(content) - 1))
    bit = data.draw(st.integers(0, 7))
    damaged = bytearray(content)
    damaged[at] ^= 1 << bit
    try:
        decoded = Decoded(bytes(damaged), manifest)
        again = decoded.run(run_id)
        decoded.run(str(UUID(int=2)))
    except (DataLoss, FailedPrecondition) as error:
        found = error.reason
    else:
        assert at == len(content) - 1, "only the version has no checksum"
        assert again == items
        return
    assert found in ("SEGMENT_CORRUPT", "SEGMENT_UNKNOWN")


@pytest.mark.parametrize("size", [0, 5, 15, 16, 40])
def test_a_short_object_is_damaged(size: int) -> None:
    content, manifest = built({str(UUID(int=1)): key_values(str(UUID(int=1)), NOW_MS, [])})
    with pytest.raises(DataLoss):
        decode_tail(content[manifest.tail_offset :][:size])
    with pytest.raises(DataLoss):
        decode_tail(content[len(content) - size :])


def test_a_layout_of_a_later_version_is_refused() -> None:
    content, manifest = built({str(UUID(int=1)): key_values(str(UUID(int=1)), NOW_MS, [])})
    later = content[manifest.tail_offset : -1] + bytes([MAGIC[-1] + 1])
    with pytest.raises(FailedPrecondition) as caught:
        decode_tail(later)
    assert caught.value.reason == "SEGMENT_UNKNOWN"


@relaxed
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=200))
def test_time_spans_have_all_times_and_leave_out_the_largest_gaps(times_ms: list[int]) -> None:
    spans = time_spans(times_ms)
    assert 1 <= len(spans) <= 16
    assert all(span.first_ms <= span.last_ms for span in spans)
    assert all(before.last_ms < span.first_ms for before, span in pairwise(spans))
    assert all(any(span.first_ms <= at_ms <= span.last_ms for span in spans) for at_ms in times_ms)
    gaps = sorted((b - a for a, b in pairwise(sorted(times_ms))), reverse=True)
    left_out = sum(b.first_ms - a.last_ms for a, b in pairwise(spans))
    assert left_out == sum(gaps[:15])


def test_only_keys_of_runs_belong_into_a_body() -> None:
    run_id = str(UUID(int=1))
    for key in (keys.run(run_id), keys.status(run_id, 0), keys.journal(run_id, 0, 0), keys.inbox(run_id, "cancel")):
        assert run_of(key) == run_id
    for prefix in (keys.results_of_run(run_id), keys.adopting_of_run(run_id), keys.journal_of_partition(run_id, 3)):
        assert run_of(prefix) == run_id
    for key in (keys.pending(run_id), keys.STATUS, keys.RUNS, keys.flow("f"), keys.deleted(run_id), keys.LEADER):
        assert run_of(key) is None


@relaxed
@given(st.data())
def test_a_range_of_a_body_is_the_range_of_its_keys(data: st.DataObject) -> None:
    run_id = str(UUID(int=1))
    items = sorted(key_values(run_id, NOW_MS, [b"x"] * 5, partitions=2), key=lambda item: item.key)
    content, manifest = built({run_id: items})
    place = decode_tail(content[manifest.tail_offset :]).body(0)
    body = decode_index(run_id, place, content[place.index_offset : place.offset + place.bytes])
    some_key = st.sampled_from(["", *body.keys, *(key[:-1] for key in body.keys)])
    prefix, after, before = data.draw(some_key), data.draw(some_key), data.draw(some_key)
    wanted = [key for key in body.keys if key.startswith(prefix) and key > after and (not before or key < before)]
    assert [body.keys[position] for position in body.positions(prefix, after, before)] == wanted
