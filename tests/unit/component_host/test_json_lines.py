"""Messages in the lines of a server, however they are printed."""

from __future__ import annotations

import json
import time

import pytest

from component_host.json_lines import MessageFinder, id_in

MESSAGE = {"jsonrpc": "2.0", "id": 3, "result": {"text": 'a {" b', "list": [], "none": {}, "items": [{"n": 1}]}}
TEXT = json.dumps(MESSAGE).encode()


def find(*lines: bytes) -> list[tuple[bytes, bool]]:
    finder = MessageFinder(100_000)
    return [found for line in lines for found in finder.feed(line)] + list(finder.give_up())


def messages(*lines: bytes) -> list[object]:
    return [json.loads(text) for text, is_json in find(*lines) if is_json]


@pytest.mark.parametrize("indent", [0, 1, 2, "\t"])
def test_a_message_over_several_lines_is_found(indent: int | str) -> None:
    lines = json.dumps(MESSAGE, indent=indent).encode().split(b"\n")
    assert messages(*lines, TEXT) == [MESSAGE, MESSAGE]


@pytest.mark.parametrize(
    "line",
    [TEXT, b"  " + TEXT + b"\r", b"Computing ... " + TEXT, TEXT + b" done", b"[" + TEXT + b"]", "ä ".encode() + TEXT],
)
def test_a_message_on_a_line_is_found(line: bytes) -> None:
    (found,) = messages(line)
    assert found in (MESSAGE, [MESSAGE])


def test_several_messages_on_a_line_are_found_in_order() -> None:
    second = {"jsonrpc": "2.0", "id": 4, "result": {"text": "ä"}}
    assert messages(TEXT + json.dumps(second, ensure_ascii=False).encode() + TEXT) == [MESSAGE, second, MESSAGE]


def test_half_a_message_does_not_swallow_the_next_one() -> None:
    assert find(TEXT[:-20], TEXT) == [(TEXT[:-20], False), (TEXT, True)]
    begun = b'{"jsonrpc": "2.0", "id": 7, "result": {"list": ['
    assert find(begun, TEXT) == [(begun, False), (TEXT, True)]


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc": "2.0", "id": 8, "result": {"text": "\\ud800"}}',
        b'{"result": {"deep": ' + b"[" * 3_000 + b"]" * 3_000 + b'}, "jsonrpc": "2.0", "id": 8}',
        b'{"jsonrpc": "2.0", "id": 8, "result": {"list": [',
    ],
)
def test_half_a_message_does_not_swallow_an_unreadable_one(line: bytes) -> None:
    begun = b'{"jsonrpc": "2.0", "id": 7, "result": {"list": ['
    found = find(begun, line)
    assert [id_in(text) for text, _ in found] == [7, 8]


def test_printed_text_is_no_message() -> None:
    for line in (b"Hello", b"[INFO] begun {", b"{curly} text", b"17", b'"text"'):
        assert find(line) == [(line, False)]
    assert find(b"  \t") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"jsonrpc":"2.0","id":17,"result":{"n":NaN}}', 17),
        (b'{"id":17,"result":[[[', 17),
        (b'{\n "jsonrpc": "2.0",\n "id": "q1",\n "result": {', "q1"),
        (b'{"result":{"n":NaN},"id":17,"jsonrpc":"2.0"}', 17),
        (b'[{"result":{"n":NaN},"jsonrpc":"2.0","id":17}]', 17),
        (b'{"result":{"n":NaN,"id":17}}', None),
        (b'{"result":{"id":17', None),
        (b"Hello", None),
    ],
)
def test_the_id_of_an_unreadable_reply_is_read_at_either_end(text: bytes, found: int | str | None) -> None:
    assert id_in(text) == found


@pytest.mark.parametrize("line", [b'{"id":[' * 200_000, b'{"id":"' * 200_000, b"[" * 1_400_000, b"{" * 1_400_000])
def test_a_hostile_line_is_searched_in_linear_time(line: bytes) -> None:
    begun = time.process_time()
    find(line)
    assert time.process_time() - begun < 5
