"""The timer heap: instants by key, and its memory use."""

from __future__ import annotations

import gc
import weakref

from stepflow.timer_heap import TimerHeap


def test_the_heap_of_instants_does_not_grow_with_the_changes() -> None:
    heap: TimerHeap[str] = TimerHeap()
    for now in range(10_000):
        heap.set("sleeper", 1_000_000_000)
        heap.set("sleeper", now)
        assert heap.pop_due(now) == ["sleeper"]
    assert len(heap) < 200
    assert heap.set("a", 5)
    assert not heap.set("b", 7)
    assert heap.set("c", 3)
    heap.set("a", 9)
    heap.drop("c")
    assert heap.next_at() == 7
    assert heap.pop_due(10) == ["b", "a"]
    assert heap.next_at() is None


def test_a_dropped_key_is_released_at_once() -> None:
    class Key:
        pass

    heap: TimerHeap[Key] = TimerHeap()
    key = Key()
    alive = weakref.ref(key)
    heap.set(key, 5)
    heap.set(key, 7)
    heap.drop(key)
    heap.drop(key)
    del key
    gc.collect()
    assert alive() is None
    assert len(heap) == 2
    assert heap.pop_due(10) == []
    assert len(heap) == 0


def test_keys_that_are_due_at_one_instant_come_in_the_order_in_which_they_were_set() -> None:
    heap: TimerHeap[str] = TimerHeap()
    for key in "cab":
        heap.set(key, 1.5)
    assert heap.pop_due(1.4) == []
    assert heap.pop_due(1.5) == ["c", "a", "b"]
