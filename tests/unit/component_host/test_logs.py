"""The log of a plugin: whose line it is, what no line shows, how much passes, and who gets it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from support import wait_until

from component_host.logged_lines import CALL_LINES_MAX, PERIOD_S
from component_host.logs import PLUGIN_LINES_MAX, RING_BYTES_MAX, RING_LINES_MAX, HostLogs
from component_host.supervision.pipes import StderrTail
from component_host.supervision.spec import ProcessSpec
from stepflow.log_lines import LINE_CHARS_MAX, TAIL_BYTES_MAX, LogLine
from stepflow.mesh.v1 import host_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from component_host.logged_lines import CallLines, LoggedLines

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
OTHER = "01890a5d-ac96-774b-bcce-b302099a8058"
SECRET = "correct-horse-battery"  # noqa: S105  # a made-up value


class Call:
    """A call of the plugin `p`."""

    def __init__(
        self, step: str = "ask", *, run_id: str = RUN, secrets: Sequence[str] = (), complete: bool = True
    ) -> None:
        self.request = host_pb2.Call(
            plugin="p",
            root_run_id=run_id,
            run_id=run_id,
            step_id=step,
            item=7,
            attempt=2,
            path="/p/ask",
            secrets=secrets,
            secrets_complete=complete,
        )
        self.queued = self.settled = False
        self.logged: CallLines | None = None


class Reader:
    """Collects lines, as a sink and as a follower."""

    def __init__(self) -> None:
        self.logged: list[LoggedLines] = []

    def send_log(self, logged: LoggedLines) -> None:
        self.logged.append(logged)

    @property
    def texts(self) -> list[str]:
        return [line.text for logged in self.logged for line in logged.lines]

    @property
    def dropped(self) -> int:
        return sum(logged.dropped for logged in self.logged)


def lines(*texts: str) -> list[LogLine]:
    return [LogLine(1, "info", text) for text in texts]


def begun(logs: HostLogs, *calls: Call) -> None:
    for call in calls:
        logs.of("p").begin_call(call)


# Whose line it is


def test_a_line_of_a_call_carries_run_item_step_and_attempt() -> None:
    reader, call = Reader(), Call()
    logs = HostLogs(sink=reader.send_log)
    logs.of("p").add_lines(call, lines("hello"))

    [logged] = reader.logged
    origin = logged.origin
    assert (origin.plugin, origin.run_id, origin.item, origin.step_id, origin.attempt) == ("p", RUN, 7, "ask", 2)
    assert logged.lines == tuple(lines("hello"))


def test_stderr_belongs_to_the_only_call_that_is_executed() -> None:
    reader, executed, queued = Reader(), Call("executed"), Call("queued")
    queued.queued = True
    logs = HostLogs(sink=reader.send_log)

    logs.of("p").add_stderr(["starting"], 0)
    begun(logs, executed, queued)
    logs.of("p").add_stderr(["of the call"], 0)
    queued.queued = False
    logs.of("p").add_stderr(["of either"], 0)
    logs.of("p").end_call(executed)
    logs.of("p").add_stderr(["of the other"], 0)

    assert [(logged.origin.step_id, logged.origin.executing) for logged in reader.logged] == [
        ("", False),
        ("executed", True),
        ("", True),
        ("queued", True),
    ]


def test_lines_after_the_end_of_a_call_are_left_out() -> None:
    reader, call = Reader(), Call()
    call.settled = True
    HostLogs(sink=reader.send_log).of("p").add_lines(call, lines("late"))
    assert reader.logged == []


# Secrets


def test_marked_values_of_the_run_leave_its_lines_and_those_of_the_plugin() -> None:
    reader, call = Reader(), Call(secrets=[SECRET])
    logs = HostLogs(sink=reader.send_log)
    begun(logs, call)
    logs.of("p").add_lines(call, lines(f"the key is {SECRET}!"))
    logs.of("p").end_call(call)
    logs.of("p").add_stderr([f"later: {SECRET}"], 0)

    assert reader.texts == ["the key is [REDACTED]!", "later: [REDACTED]"]
    assert SECRET not in str(logs.of("p").ring)
    assert SECRET not in str(logs.of("p").tail_of(call))


def test_a_call_whose_secrets_are_not_all_known_leaves_no_line() -> None:
    reader, call = Reader(), Call(complete=False)
    logs = HostLogs(sink=reader.send_log)
    begun(logs, call)
    logs.of("p").add_lines(call, lines("a"))
    logs.of("p").add_stderr(["b"], 0)
    assert reader.logged == []
    assert logs.of("p").tail_of(call) == []


def test_secrets_of_the_server_and_what_looks_like_one_are_removed() -> None:
    reader, call = Reader(), Call()
    logs = HostLogs(sink=reader.send_log)
    logs.of("p").hide(["server-password"])
    logs.of("p").add_lines(call, lines("server-password", "Authorization: Bearer abcdefghijkl"))
    assert reader.texts == ["[REDACTED]", "Authorization: Bearer [REDACTED]"]


def test_a_secret_at_the_cut_of_a_long_line_does_not_show_its_beginning() -> None:
    reader, call = Reader(), Call(secrets=[SECRET, "x"])
    logs = HostLogs(sink=reader.send_log)
    begun(logs, call)
    for before in range(LINE_CHARS_MAX - len(SECRET) - 1, LINE_CHARS_MAX + 1):
        logs.of("p").add_lines(call, lines("-" * before + SECRET + "-" * LINE_CHARS_MAX))
    assert not any(SECRET[:4] in text for text in reader.texts)
    assert all(len(text) <= LINE_CHARS_MAX for text in reader.texts)


def test_stderr_is_cut_only_after_marked_values_are_removed() -> None:
    reader, call = Reader(), Call(secrets=[SECRET])
    logs = HostLogs(sink=reader.send_log)
    begun(logs, call)
    spec = ProcessSpec(
        plugin="p", command="x", args=(), env={}, inherit_env=False, working_directory="/", environ={}, log=logs.of("p")
    )
    for before in range(760, 805):
        StderrTail(spec).feed(b"-" * before + SECRET.encode() + b"\n")
    assert reader.texts
    assert not any(SECRET[:4] in text for text in reader.texts)


def test_lines_that_the_sdk_has_sent_with_their_call_are_not_told_twice() -> None:
    reader, call = Reader(), Call()
    logs = HostLogs(sink=reader.send_log)
    begun(logs, call)
    spec = ProcessSpec(
        plugin="p", command="x", args=(), env={}, inherit_env=False, working_directory="/", environ={}, log=logs.of("p")
    )
    tail = StderrTail(spec)
    tail.feed(b"\x02printed\nof a child\n")
    assert reader.texts == ["of a child"]
    assert tail.text_of_run() == "printed\nof a child", "the last words of a crash"


def test_a_line_cannot_steer_a_terminal() -> None:
    reader, call = Reader(), Call()
    HostLogs(sink=reader.send_log).of("p").add_lines(call, lines("\x1b[31mred\x1b[0m\tand \x1b]0;title\x07"))
    assert reader.texts == ["red    and \\x1b]0;title\\x07"]


# Floods


def test_a_flood_of_a_call_costs_little_and_keeps_its_last_lines() -> None:
    reader, call = Reader(), Call()
    logs = HostLogs(sink=reader.send_log)
    begun(logs, call)
    began = time.process_time()
    for start in range(0, 200_000, 100):
        logs.of("p").add_lines(call, [LogLine(1, "", f"line {number}") for number in range(start, start + 100)])
    took_s = time.process_time() - began

    periods = took_s / PERIOD_S + 2
    assert len(reader.texts) <= CALL_LINES_MAX * periods
    assert took_s < 5.0
    tail = logs.of("p").tail_of(call)
    assert tail[-1].text == "line 199999"
    assert sum(len(line.text) for line in tail) <= TAIL_BYTES_MAX


def test_lines_that_did_not_pass_are_counted_with_the_next_ones() -> None:
    reader, call = Reader(), Call()
    logs = HostLogs(sink=reader.send_log)
    logs.of("p").add_lines(call, lines(*map(str, range(CALL_LINES_MAX + 40))), dropped=2)
    assert reader.texts == [str(number) for number in range(40, CALL_LINES_MAX + 40)]
    assert reader.dropped == 42

    def passes() -> bool:
        logs.of("p").add_lines(call, lines("next"))
        return len(reader.logged) == 2

    wait_until(passes, "the next period has begun")
    assert reader.texts[-1] == "next"
    assert reader.dropped >= 42


def test_the_last_lines_of_a_call_pass_at_its_end_although_the_flood_was_cut() -> None:
    reader, call = Reader(), Call()
    logs = HostLogs(sink=reader.send_log)
    begun(logs, call)
    logs.of("p").add_lines(call, lines(*map(str, range(CALL_LINES_MAX))))
    logs.of("p").add_lines(call, lines(*map(str, range(1_000))))
    logs.of("p").add_lines(call, lines("the last"))
    call.settled = True
    logs.of("p").end_call(call)
    logs.of("p").end_call(call)

    assert len(reader.logged) == 2
    assert reader.logged[1].lines[-1].text == "the last"
    assert reader.logged[1].lines[-2].text == "999"
    assert len(reader.texts) + reader.dropped == CALL_LINES_MAX + 1_001


def test_many_calls_share_the_room_of_their_plugin() -> None:
    reader = Reader()
    logs = HostLogs(sink=reader.send_log)
    calls = [Call(f"s{number}") for number in range(50)]
    began = time.monotonic()
    for call in calls:
        logs.of("p").add_lines(call, lines(*["x"] * CALL_LINES_MAX))
    periods = int((time.monotonic() - began) / PERIOD_S) + 1
    assert len(reader.texts) <= PLUGIN_LINES_MAX * periods
    assert all(logs.of("p").tail_of(call) for call in calls)


def test_a_ring_is_bounded_in_lines_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("component_host.logged_lines.PERIOD_S", 0.0)
    logs = HostLogs()
    log = logs.of("p")
    for number in range(RING_LINES_MAX + 500):
        log.add_lines(Call(), lines(f"{number}"))
    assert sum(len(logged.lines) for logged in log.ring) == RING_LINES_MAX
    assert log.ring[-1].lines[0].text == f"{RING_LINES_MAX + 499}"

    for _ in range(300):
        log.add_lines(Call(), lines("y" * LINE_CHARS_MAX))
    size = sum(len(line.text) for logged in log.ring for line in logged.lines)
    assert RING_BYTES_MAX - LINE_CHARS_MAX <= size <= RING_BYTES_MAX


# Followers


def test_a_follower_gets_the_kept_lines_of_its_run_and_then_the_new_ones() -> None:
    logs, reader = HostLogs(), Reader()
    mine, other = Call(), Call(run_id=OTHER)
    logs.of("p").add_lines(mine, lines("before"))
    logs.of("p").add_lines(other, lines("of another run"))

    logs.follow(RUN, reader)
    logs.of("p").add_lines(mine, lines("after"))
    logs.of("p").add_lines(other, lines("of another run"))
    logs.of("p").add_stderr(["of no run"], 0)
    logs.unfollow(RUN, reader)
    logs.of("p").add_lines(mine, lines("too late"))
    assert reader.texts == ["before", "after"]


def test_a_follower_of_all_gets_the_lines_without_a_call_too() -> None:
    logs, reader = HostLogs(), Reader()
    logs.of("p").add_stderr(["starting"], 0)
    logs.follow_all(reader)
    logs.of("q").add_stderr(["second plugin"], 0)
    logs.unfollow_all(reader)
    logs.of("q").add_stderr(["too late"], 0)
    assert [(logged.origin.plugin, logged.lines[0].text) for logged in reader.logged] == [
        ("p", "starting"),
        ("q", "second plugin"),
    ]


def test_the_log_of_the_host_has_the_lines_as_fields(capsys: pytest.CaptureFixture[str]) -> None:
    from stepflow import telemetry

    telemetry.configure("info", format="json")
    try:
        logs = HostLogs(own_log=True)
        logs.of("p").add_lines(Call(), [LogLine(1, "warning", "hello"), LogLine(1, "debug", "not at this level")])
    finally:
        telemetry.configure()
    shown = capsys.readouterr().err
    assert '"line": "hello"' in shown
    assert '"line_level": "warning"' in shown
    assert f'"run_id": "{RUN}", "item": 7, "step_id": "ask", "attempt": 2' in shown
    assert "not at this level" not in shown


def test_long_words_cost_no_more_than_other_text() -> None:
    call = Call()
    began = time.process_time()
    HostLogs().of("p").add_lines(call, lines(*["y" * LINE_CHARS_MAX] * CALL_LINES_MAX))
    assert time.process_time() - began < 1.0


def test_a_flood_on_stderr_costs_little() -> None:
    reader, call = Reader(), Call()
    logs = HostLogs(sink=reader.send_log)
    begun(logs, call)
    spec = ProcessSpec(
        plugin="p", command="x", args=(), env={}, inherit_env=False, working_directory="/", environ={}, log=logs.of("p")
    )
    tail = StderrTail(spec)
    flood = b"".join(b"line %d\n" % number for number in range(200_000))
    began = time.process_time()
    for start in range(0, len(flood), 64 * 1024):
        tail.feed(flood[start : start + 64 * 1024])
    took_s = time.process_time() - began
    assert took_s < 2.0
    call.settled = True
    logs.of("p").end_call(call)
    assert reader.texts[-1] == "line 199999"
    assert len(reader.texts) + reader.dropped == 200_000
