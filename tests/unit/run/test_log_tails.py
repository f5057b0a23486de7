"""The last log lines of a final failure in the journal: which failures have them, how much, and without secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.corpus import ref, step
from support.engine import World

from stepflow.log_lines import TAIL_BYTES_MAX, LogLine, lines_from_pb, tail_bytes, tail_of
from stepflow.run.settle import PARTITION_TAILS_BYTES_MAX, SHORT_TAIL_BYTES_MAX
from stepflow.run.views import step_event

if TYPE_CHECKING:
    from collections.abc import Sequence

LINES = (LogLine(1, "", "loading"), LogLine(2, "error", "no model"))


def tails(world: World) -> list[tuple[LogLine, ...]]:
    return [
        lines_from_pb(entry.step_completed.log_tail) for entry in world.entries() if entry.HasField("step_completed")
    ]


def failing(count: int = 1, **members: Any) -> dict[str, Any]:
    steps = [step(f"s{number}", "/c/fail", {"$input": "$"}, **members) for number in range(count)]
    return {"steps": steps, "output": [ref(f"s{number}") for number in range(count)]}


def test_a_final_failure_keeps_the_last_log_lines() -> None:
    world = World(failing(), log_tail=LINES)
    world.run()
    assert tails(world) == [LINES]
    completed = next(entry for entry in world.entries() if entry.HasField("step_completed"))
    event = step_event(world.state, completed)
    assert event is not None
    assert event.log_tail == LINES


def test_a_failure_that_is_retried_keeps_none() -> None:
    world = World(failing(onError={"action": "retry", "maxRetries": 2}), log_tail=LINES)
    world.run()
    assert sum(entry.HasField("attempt_failed") for entry in world.entries()) == 2
    assert tails(world) == [LINES]


def test_a_success_keeps_none() -> None:
    world = World({"steps": [step("s", "/c/id", {})], "output": ref("s")}, log_tail=LINES)
    world.run()
    assert tails(world) == [()]


def test_one_tail_has_at_most_4_kib() -> None:
    world = World(failing(), log_tail=tuple(LogLine(n, "", f"{n} " + "x" * 200) for n in range(100)))
    world.run()
    [tail] = tails(world)
    assert tail[-1].text.startswith("99 ")
    assert TAIL_BYTES_MAX - 300 < size(tail) <= TAIL_BYTES_MAX


def test_the_tails_of_a_partition_are_bounded_also_over_crashes() -> None:
    long = tuple(LogLine(n, "", "y" * 1_000) for n in range(4))
    count = 30
    world = World(failing(count), log_tail=long, window=count)
    world.run([0] * 10 + [-1] + [0] * 10 + [-1])
    sizes = [size(tail) for tail in tails(world)]
    assert len(sizes) == count
    assert sum(sizes[:-1]) > PARTITION_TAILS_BYTES_MAX
    first_short = next(index for index, found in enumerate(sizes) if found <= SHORT_TAIL_BYTES_MAX)
    assert sum(sizes[:first_short]) < PARTITION_TAILS_BYTES_MAX + TAIL_BYTES_MAX
    assert all(found <= SHORT_TAIL_BYTES_MAX for found in sizes[first_short:])
    assert world.state.log_tail_bytes == sum(sizes) == world.replayed().log_tail_bytes


def test_marked_values_leave_the_tail() -> None:
    marked = {"input": {"type": "object", "properties": {"pw": {"type": "string", "is_secret": True}}}}
    world = World(
        {"schemas": {"type": "object", "properties": marked}, **failing()},
        inputs=[{"pw": "hunter2-the-input"}],
        log_tail=(LogLine(1, "", "the password is hunter2-the-input"),),
    )
    world.run()
    assert [line.text for line in tails(world)[0]] == ["the password is [REDACTED]"]


def test_a_tail_ends_with_the_last_line_and_may_begin_within_one() -> None:
    lines = [LogLine(1, "", "first"), LogLine(2, "", "é" * 100), LogLine(3, "", "last")]
    kept = tail_of(lines, 100)
    assert kept[-1] == lines[-1]
    assert set(kept[0].text) == {"é"}
    assert 50 < size(kept) <= 100
    assert tail_of(lines, 10_000) == lines
    assert tail_of([], 100) == tail_of(lines, 5) == []


def size(lines: Sequence[LogLine]) -> int:
    from stepflow.log_lines import lines_to_pb

    return tail_bytes(lines_to_pb(lines))
