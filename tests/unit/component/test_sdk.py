"""A component server from its host's side: handshake, calls, failures, bad requests.

The expected answers are those of the StepFlow JSON-RPC protocol; the extensions are in `stepflow/component/wire.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.component_client import SERVERS, Client, run, script

from stepflow import component as sdk


@pytest.fixture
def server() -> Iterator[Client]:
    with Client(SERVERS / "behaviours.py") as client:
        client.initialize()
        yield client


# Before any call


def test_the_handshake_tells_version_and_capabilities() -> None:
    with Client(SERVERS / "kinds.py") as client:
        assert client.initialize() == {"server_protocol_version": 1, "capabilities": {"progress": True, "cancel": True}}


def test_a_server_answers_without_a_handshake() -> None:
    with Client(SERVERS / "kinds.py") as client:
        assert client.call("/whole_kind", [1, 2]) == 3


def test_importing_the_sdk_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = (
        "grpc google.protobuf pydantic rich typer structlog mcp yaml ruamel httpx jsonschema_rs obstore uvloop asyncio"
    )
    path = script(
        tmp_path, f"import sys, stepflow.component\nprint([m for m in {heavy.split()!r} if m in sys.modules])"
    )
    assert run(path).stdout == "[]\n"


def test_serving_plain_types_does_not_load_pydantic(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import sys\nfrom stepflow.component import component, serve\n"
        "@component\ndef loaded(a: int) -> bool:\n    return 'pydantic' in sys.modules\n"
        "serve()",
    )
    with Client(path) as client:
        assert client.call("/loaded", {"a": 1}) is False


def test_the_ten_lines_of_the_module_docstring_make_a_server(tmp_path: Path) -> None:
    assert sdk.__doc__ is not None
    text = "\n".join(line[4:] for line in sdk.__doc__.splitlines() if line.startswith("    ") or not line)
    with Client(script(tmp_path, text)) as client:
        assert client.call("/greet", {"name": "Ada"}) == "Hello, Ada!"


def test_the_first_example_of_the_documentation_is_a_server_that_works(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to" / "write-components.md").read_text()
    example = text.split("```python\n", 1)[1].split("```", 1)[0]
    assert run(script(tmp_path, example), "--call", "greet", stdin='{"name": "Ada"}').stdout == '"Hello, Ada!"\n'


# Calls


def test_inline_async_and_sync_components_answer(server: Client) -> None:
    assert server.call("/add", {"a": 1, "b": 2}) == 3
    assert server.call("/add_async", {"a": 1, "b": 2}) == 3
    assert server.call("/size", {"text": "four"}) == 4


def test_an_async_component_runs_in_a_task(server: Client) -> None:
    assert server.call("/in_a_task") is True


def test_ids_come_back_as_they_were(server: Client) -> None:
    for request_id in ("text", 7, 123456789012345678901, 'quote" and \\ and é', 1.5):
        server.send(id=request_id, method="components/execute", params={"component": "/add", "input": {"a": 1, "b": 1}})
        assert server.receive()["id"] == request_id


def test_a_waiting_sync_component_delays_no_other(server: Client) -> None:
    waiting = server.execute("/wait_for_gate", {"name": "g"})
    assert server.call("/add_async", {"a": 1, "b": 1}) == 2
    assert server.call("/size", {"text": "x"}) == 1
    assert server.call("/open_gate", {"name": "g"}) == "g"
    assert server.receive() == {"jsonrpc": "2.0", "id": waiting, "result": {"output": "g"}}


def test_more_sync_calls_than_threads_wait_their_turn(server: Client) -> None:
    waiting = [server.execute("/wait_for_gate", {"name": f"g{index}"}) for index in range(4)]
    queued = server.execute("/size", {"text": "x"})
    assert server.call("/add_async", {"a": 1, "b": 1}) == 2
    assert server.call("/open_gate", {"name": "g2"}) == "g2"
    assert {server.receive()["id"] for _ in range(2)} == {waiting[2], queued}
    for index in (0, 1, 3):
        server.execute("/open_gate", {"name": f"g{index}"})
    answered = {server.receive()["id"] for _ in range(6)}
    assert {waiting[0], waiting[1], waiting[3]} <= answered


def test_a_thousand_calls_sent_at_once_are_all_answered_once(server: Client) -> None:
    paths = ["/add", "/add_async", "/size"]
    inputs: dict[str, Any] = {"a": 1, "b": 2, "text": "abc"}
    sent = [server.execute(paths[index % 3], inputs) for index in range(999)]
    replies = [server.receive() for _ in sent]
    assert sorted(reply["id"] for reply in replies) == sorted(sent)
    assert {reply["result"]["output"] for reply in replies} == {3}


def test_a_line_may_arrive_in_pieces(server: Client) -> None:
    line = (
        b'{"jsonrpc":"2.0","id":1,"method":"components/execute","params":{"component":"/add","input":{"a":1,"b":2}}}\n'
    )
    for at in range(0, len(line), 9):
        server.send_bytes(line[at : at + 9])
    assert server.receive()["result"] == {"output": 3}


def test_eight_mebibytes_pass_in_both_directions(server: Client) -> None:
    text = "é" * (4 * 1024 * 1024)
    assert server.call("/size", {"text": text}) == len(text)
    assert server.call("/big", {"count": 8 * 1024 * 1024}) == "x" * (8 * 1024 * 1024)
    assert server.call("/add", {"a": 1, "b": 1}) == 2


def test_many_large_results_pass_while_the_host_does_not_read(server: Client) -> None:
    sent = [server.execute("/big", {"count": 1024 * 1024}) for _ in range(24)]
    replies = [server.receive() for _ in sent]
    assert sorted(reply["id"] for reply in replies) == sorted(sent)
    assert {len(reply["result"]["output"]) for reply in replies} == {1024 * 1024}


def test_the_context_tells_the_facts_of_the_call(server: Client) -> None:
    trace = {"trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "1", "run_id": "R", "flow_id": "F", "step_id": "S"}
    facts = {"component": "/facts", "input": {}, "attempt": 3, "observability": trace}
    ours = {"idempotency_key": "R/0/S", "timeout_ms": 60_000, "item": 4, "path_params": {"p": "v"}, "unknown": 1}
    server.send(id=1, method="components/execute", params=facts | ours)
    assert server.receive()["result"]["output"] == {
        "run_id": "R",
        "step_id": "S",
        "flow_id": "F",
        "item": 4,
        "attempt": 3,
        "idempotency_key": "R/0/S",
        "timeout_ms": 60_000,
        "has_deadline": True,
        "remaining_is_less": True,
        "cancelled": False,
        "path_params": {"p": "v"},
    }


def test_a_host_that_tells_nothing_leaves_the_facts_empty(server: Client) -> None:
    server.send(id=1, method="components/execute", params={"component": "/facts"})
    facts = server.receive()["result"]["output"]
    assert facts["attempt"] == 1
    assert [facts[name] for name in ("run_id", "step_id", "idempotency_key", "timeout_ms", "item")] == [None] * 5


def test_ids_beside_observability_are_read_too(server: Client) -> None:
    facts = server.call("/facts", {}, run_id="top", step_id="level")
    assert (facts["run_id"], facts["step_id"]) == ("top", "level")


# Failures


@pytest.mark.parametrize(
    ("kind", "error_code", "exception_type", "message"),
    [
        ("component", "COMPONENT_FAILED", "ComponentError", "it broke"),
        ("details without a JSON form", "COMPONENT_FAILED", "ComponentError", "it broke"),
        ("input", "INVALID_INPUT", "InvalidInput", "the input is odd"),
        ("resource", "RESOURCE_UNAVAILABLE", "ResourceUnavailable", "no such service"),
        ("os", "RESOURCE_UNAVAILABLE", "FileNotFoundError", "FileNotFoundError: [Errno 2] No such file: 'x.txt'"),
        ("exit", "COMPONENT_FAILED", "SystemExit", "SystemExit: 3"),
        ("own", "COMPONENT_FAILED", "KeyError", "KeyError: 'secret place'"),
        ("silent", "COMPONENT_FAILED", "RuntimeError", "RuntimeError"),
        ("own class", "INVALID_INPUT", "OwnError", "in its own way"),
        ("unprintable", "COMPONENT_FAILED", "UnprintableError", "UnprintableError"),
        ("undecodable", "COMPONENT_FAILED", "RuntimeError", "RuntimeError: file ?.txt"),
    ],
)
def test_an_exception_becomes_an_error_with_its_code(
    server: Client, kind: str, error_code: str, exception_type: str, message: str
) -> None:
    error = server.error("/fail", {"kind": kind})
    assert error["code"] == -32003
    deliberate = exception_type in ("ComponentError", "InvalidInput", "ResourceUnavailable", "OwnError")
    place = "" if deliberate else f" (tests/data/servers/behaviours.py:{error['data']['frames'][0]['line']} in fail)"
    assert error["message"] == message + place
    assert error["data"]["error_code"] == error_code
    assert error["data"]["exception_type"] == exception_type
    assert "traceback" not in error["data"]
    assert server.call("/add", {"a": 1, "b": 1}) == 2


def test_details_of_a_component_error_are_passed_on(server: Client) -> None:
    assert server.error("/fail", {"kind": "component"})["data"]["details"] == {"part": 7}


def test_async_components_fail_in_the_same_way(server: Client) -> None:
    error = server.error("/fail_async", {"kind": "late"})
    assert error["message"] == "ValueError: late (tests/data/servers/behaviours.py:133 in fail_async)"
    assert error["data"]["frames"] == [
        {
            "file": "tests/data/servers/behaviours.py",
            "line": 133,
            "function": "fail_async",
            "code": "raise ValueError(kind)",
        }
    ]
    assert server.error("/cancels_itself")["data"]["error_code"] == "COMPONENT_FAILED"


def test_the_whole_traceback_is_told_only_at_log_level_debug() -> None:
    with Client(SERVERS / "behaviours.py", STEPFLOW_LOG_LEVEL="debug") as client:
        assert "KeyError: 'secret place'" in client.error("/fail", {"kind": "own"})["data"]["traceback"]


def test_an_output_without_a_json_form_fails_its_call_only(server: Client) -> None:
    assert "object" in server.error("/no_json")["message"]
    assert ".result()" in server.error("/forgets_result", None, lambda *_: {"result": {"blob_id": "b"}})["message"]
    assert server.call("/add", {"a": 1, "b": 1}) == 2


def test_an_unknown_component_is_not_found_and_the_near_name_is_told(server: Client) -> None:
    error = server.error("/ad")
    assert error["code"] == -32001
    assert error["data"]["error_code"] == "COMPONENT_NOT_FOUND"
    assert "/add" in error["message"]
    server.request("components/info", component="/nope")
    assert server.receive()["error"]["code"] == -32001


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"{not json}", -32700, None),
        (b'{"jsonrpc":"2.0","id":1', -32700, None),
        (b"\xff\xfe", -32700, None),
        (b"[" * 100_000, -32600, None),
        (b"[]", -32600, None),
        (b"42", -32600, None),
        (b'{"jsonrpc":"2.0","id":5,"method":"\\ud800","params":{}}', -32700, None),
        (b'{"jsonrpc":"2.0","id":{"a":1},"method":"components/list","params":{}}', -32600, None),
        (b'{"jsonrpc":"2.0","id":null,"method":"components/list","params":{}}', -32600, None),
        (b'{"jsonrpc":"2.0","id":5,"method":7,"params":{}}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"components/fly","params":{}}', -32601, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"components/info","params":{}}', -32602, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"components/info"}', -32602, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"components/execute","params":[]}', -32602, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"components/execute","params":{"component":3}}', -32602, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"components/execute"}', -32602, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"components/info","params":{"component":"\xff"}}', -32602, 5),
        (
            b'{"jsonrpc":"2.0","id":5,"method":"components/info","params":' + b"[" * 9_000 + b"]" * 9_000 + b"}",
            -32600,
            5,
        ),
    ],
)
def test_a_bad_request_is_answered(server: Client, line: bytes, code: int, request_id: int | None) -> None:
    server.send_bytes(line + b"\n")
    reply = server.receive()
    assert reply["error"]["code"] == code
    assert reply["id"] == request_id
    assert server.call("/add", {"a": 1, "b": 1}) == 2


def test_the_message_of_a_bad_request_names_the_field(server: Client) -> None:
    server.send(id=1, method="components/execute", params={"component": "/add", "attempt": "x"})
    assert "$.attempt" in server.receive()["error"]["message"]


def test_notifications_and_stray_replies_are_not_answered(server: Client) -> None:
    server.send(method="components/fly", params={})
    server.send(method="components/cancel", params={"id": []})
    server.send(method="components/cancel", params={"id": "nobody"})
    server.send(id="nobody", result={})
    server.send_bytes(b"\n  \n")
    assert server.call("/add", {"a": 1, "b": 1}) == 2


def test_an_id_in_flight_is_not_taken_twice(server: Client) -> None:
    first = server.execute("/wait_for_gate", {"name": "g"})
    server.send(id=first, method="components/execute", params={"component": "/add", "input": {"a": 1, "b": 1}})
    assert server.receive()["error"]["code"] == -32600
    assert server.call("/open_gate", {"name": "g"}) == "g"
    assert server.receive()["result"] == {"output": "g"}


def test_a_line_above_the_limit_is_refused_and_the_next_one_answered(server: Client) -> None:
    head = b'{"jsonrpc":"2.0","id":"huge","method":"components/execute","params":{"component":"/size","input":{"text":"'
    server.send_bytes(head)
    for _ in range(65):
        server.send_bytes(b"x" * (1024 * 1024))
    server.send_bytes(b'"}}}\n')
    reply = server.receive()
    assert reply["id"] == "huge"
    assert reply["error"]["code"] == -32600
    assert "67,108,864" in reply["error"]["message"]
    assert server.call("/add", {"a": 1, "b": 1}) == 2
