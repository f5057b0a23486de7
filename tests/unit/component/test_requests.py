"""Requests of running components to their host; progress and cancellation of calls."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.component_client import SERVERS, Client


@pytest.fixture
def server() -> Iterator[Client]:
    with Client(SERVERS / "behaviours.py") as client:
        client.initialize()
        yield client


# Requests to the host


class Host:
    """Answers the requests of components from memory, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.blobs: dict[str, Any] = {}

    def __call__(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((method, params))
        match method:
            case "blobs/put":
                blob_id = f"blob-{len(self.blobs)}"
                self.blobs[blob_id] = params["data"]
                return {"result": {"blob_id": blob_id}}
            case "blobs/get" if params["blob_id"] in self.blobs:
                return {"result": {"data": self.blobs[params["blob_id"]], "blob_type": "data"}}
            case "flows/evaluate" if params["input"] == "bad":
                failure = {"code": "COMPONENT_FAILED", "message": "inner", "data": {"why": 1}}
                return {"result": {"result": {"outcome": "failed", "error": failure}}}
            case "flows/evaluate":
                return {"result": {"result": {"outcome": "success", "result": [params["flow_id"], params["input"]]}}}
            case "flows/submit_batch":
                return {"result": {"batch_id": "batch", "total_runs": len(params["inputs"])}}
            case "flows/get_batch":
                failed = {"outcome": "failed", "error": {"code": 3, "message": "no"}}
                return {
                    "result": {
                        "details": {},
                        "outputs": [
                            {"batch_input_index": 1, "status": "failed", "result": failed},
                            {
                                "batch_input_index": 0,
                                "status": "completed",
                                "result": {"outcome": "success", "result": 8},
                            },
                            {"batch_input_index": 2, "status": "cancelled"},
                        ],
                    }
                }
            case "flows/get_metadata":
                return {"result": {"flow_metadata": {"of": params["flow_id"]}, "step_metadata": None}}
        return {"error": {"code": -32011, "message": "no such blob", "data": {"blob": "?"}}}


@pytest.mark.parametrize("path", ["/blob_async", "/blob_sync"])
def test_blobs_are_put_and_got(server: Client, path: str) -> None:
    host = Host()
    value = {"v": [1, "é", None, 1.5]}
    assert server.call(path, {"value": value}, host) == ["blob-0", value]
    assert [method for method, _ in host.asked] == ["blobs/put", "blobs/get"]
    assert host.asked[0][1]["blob_type"] == "data"


def test_requests_carry_the_observability_of_their_execute(server: Client) -> None:
    host = Host()
    trace = {"trace_id": "a" * 32, "span_id": "b" * 16, "run_id": "R", "flow_id": None, "custom": 1}
    params = {"component": "/blob_async", "input": {"value": 1}, "observability": trace}
    server.send(id=1, method="components/execute", params=params)
    assert "result" in server.reply(host)
    assert [asked["observability"] for _, asked in host.asked] == [trace, trace]


def test_requests_may_be_many_at_once_and_answered_in_any_order(server: Client) -> None:
    call = server.execute("/blobs_at_once", {"count": 5})
    asked = [server.receive() for _ in range(5)]
    assert len({message["id"] for message in asked}) == 5
    for message in reversed(asked):
        server.send(id=message["id"], result={"blob_id": f"b{message['params']['data']}"})
    assert server.receive() == {"jsonrpc": "2.0", "id": call, "result": {"output": ["b0", "b1", "b2", "b3", "b4"]}}


def test_a_refusal_of_the_host_is_an_exception_that_a_component_may_catch(server: Client) -> None:
    assert server.call("/missing_blob", None, Host()) == {"code": -32011, "message": "no such blob"}


@pytest.mark.parametrize(
    "answer", [{"result": {}}, {"result": None}, {"result": {"blob_id": 3}}, {"error": "no"}, {"error": {}}]
)
def test_a_malformed_reply_of_the_host_fails_the_call_and_does_not_hang_it(server: Client, answer: Any) -> None:
    error = server.error("/blob_sync", {"value": 1}, lambda *_: answer)
    assert error["data"]["exception_type"] == "HostError"
    assert "malformed" in error["message"]


def test_an_inline_component_that_waits_for_the_host_is_told_why_it_cannot(server: Client) -> None:
    error = server.error("/blob_inline", None, Host())
    assert "inline" in error["message"]


def test_a_flow_is_run_by_id(server: Client) -> None:
    host = Host()
    assert server.call("/flow_sync", {"flow": "f" * 64, "value": 1}, host) == ["f" * 64, 1]
    assert [method for method, _ in host.asked] == ["flows/evaluate"]


def test_a_flow_document_is_stored_and_then_run(server: Client) -> None:
    host = Host()
    assert server.call("/flow_async", {"flow": {"output": 1}, "value": 2}, host) == ["blob-0", 2]
    assert [(method, params.get("blob_type")) for method, params in host.asked] == [
        ("blobs/put", "flow"),
        ("flows/evaluate", None),
    ]


def test_a_failed_flow_is_an_exception_with_its_code(server: Client) -> None:
    caught = server.call("/flow_async", {"flow": "f", "value": "bad"}, Host())
    assert caught == {"failed": "COMPONENT_FAILED", "data": {"why": 1}}
    error = server.error("/flow_sync", {"flow": "f", "value": "bad"}, Host())
    assert error["message"] == "the flow failed with COMPONENT_FAILED: inner"
    assert error["data"]["error_code"] == "COMPONENT_FAILED"


def test_a_batch_gives_its_results_in_the_order_of_the_inputs(server: Client) -> None:
    host = Host()
    results = server.call("/flows", {"flow": "f", "inputs": [1, 2, 3]}, host)
    assert results == [8, "COMPONENT_FAILED: no", "CANCELLED: the batch ended without a result of this input"]
    assert host.asked[0][1]["max_concurrency"] == 2
    assert host.asked[1][1] == {"batch_id": "batch", "wait": True, "include_results": True, "observability": {}}
    assert server.call("/flows", {"flow": "f", "inputs": []}) == []


def test_metadata_of_flow_and_step_is_read(server: Client) -> None:
    assert server.call("/metadata", None, Host(), flow_id="F", step_id="S") == [{"of": "F"}, {}]


def test_metadata_without_a_flow_id_is_refused_in_words(server: Client) -> None:
    assert "sent no flow id" in server.error("/metadata", None, Host())["message"]


# Progress and cancellation


def test_progress_is_sent_only_to_a_host_that_asked_for_it(server: Client) -> None:
    server.execute("/much_progress", {"count": 3})
    assert "result" in server.receive()
    server.initialize(progress=True)
    call = server.execute("/much_progress", {"count": 3})
    message = server.receive()
    assert message["method"] == "components/progress"
    assert message["params"]["id"] == call
    assert "id" not in message


def test_progress_arrives_while_the_call_runs_and_the_last_of_it_before_the_result(server: Client) -> None:
    server.initialize(progress=True)
    call = server.execute("/slow_progress")
    first, asked = server.receive(), server.receive()
    assert first["params"] == {"id": call, "done": 1.0, "total": 2.0, "message": "half"}
    assert asked["method"] == "blobs/get"
    server.send(id=asked["id"], result={"data": 1, "blob_type": "data"})
    assert server.receive()["params"] == {"id": call, "done": 2.0, "total": 2.0, "message": "all"}
    assert server.receive()["id"] == call


def test_much_progress_is_thinned_out_to_the_latest(server: Client) -> None:
    server.initialize(progress=True)
    call = server.execute("/much_progress", {"count": 20_000})
    seen = []
    while "method" in (message := server.receive()):
        seen.append(message["params"]["done"])
    assert message["id"] == call
    assert seen == sorted(seen)
    assert seen[-1] == 20_000
    assert len(seen) < 2_000


def test_the_last_progress_is_never_lost_however_it_is_timed(server: Client) -> None:
    server.initialize(progress=True)
    for count in range(1, 200):
        server.execute("/much_progress", {"count": count})
        last = None
        while "method" in (message := server.receive()):
            last = message["params"]["done"]
        assert last == count


def test_a_cancelled_async_call_cleans_up_and_is_answered(server: Client) -> None:
    server.initialize(progress=True)
    call = server.execute("/wait_forever")
    server.receive()
    server.send(method="components/cancel", params={"id": call})
    reply = server.receive()
    assert reply["id"] == call
    assert reply["error"]["data"]["error_code"] == "CANCELLED"
    assert server.call("/add", {"a": 1, "b": 1}) == 2
    code, stderr = server.end()
    assert code == 0
    assert "cleaned up" in stderr


def test_a_call_that_is_cancelled_in_the_same_breath_is_answered(server: Client) -> None:
    for path in ("/wait_forever", "/wait_until_cancelled"):
        execute = {"jsonrpc": "2.0", "id": "x", "method": "components/execute", "params": {"component": path}}
        cancel = {"jsonrpc": "2.0", "method": "components/cancel", "params": {"id": "x"}}
        server.send_bytes(f"{json.dumps(execute)}\n{json.dumps(cancel)}\n".encode())
        assert server.receive()["id"] == "x"


def test_a_cancelled_sync_call_sees_it_in_its_context(server: Client) -> None:
    server.initialize(progress=True)
    call = server.execute("/wait_until_cancelled")
    server.receive()
    server.send(method="components/cancel", params={"id": call})
    assert server.receive() == {"jsonrpc": "2.0", "id": call, "result": {"output": "saw it"}}


def test_a_cancelled_sync_call_stops_waiting_for_the_host(server: Client) -> None:
    call = server.execute("/wait_for_host")
    asked = server.receive()
    server.send(method="components/cancel", params={"id": call})
    reply = server.receive()
    assert reply["id"] == call
    assert reply["error"]["data"]["error_code"] == "CANCELLED"
    server.send(id=asked["id"], result={"data": 1, "blob_type": "data"})
    assert server.call("/add", {"a": 1, "b": 1}) == 2


def test_a_queued_sync_call_that_was_cancelled_never_begins(server: Client) -> None:
    for index in range(4):
        server.execute("/wait_for_gate", {"name": f"g{index}"})
    queued = server.execute("/wait_for_gate", {"name": "never opened"})
    server.send(method="components/cancel", params={"id": queued})
    reply = server.receive()
    assert reply["id"] == queued
    assert reply["error"]["data"]["error_code"] == "CANCELLED"
    behind = server.execute("/size", {"text": "abc"})
    server.execute("/open_gate", {"name": "g0"})
    assert behind in {server.receive()["id"] for _ in range(3)}


def test_a_host_that_wants_it_is_told_which_calls_wait_for_a_thread_and_when_they_begin() -> None:
    with Client(SERVERS / "behaviours.py") as server:
        server.initialize(queue=True)
        for index in range(4):
            server.execute("/wait_for_gate", {"name": f"g{index}"})
        waiting = [server.execute("/wait_for_gate", {"name": name}) for name in ("g0", "g4")]
        notice = server.receive()
        assert (notice["method"], notice["params"]) == ("components/queued", {"ids": waiting})

        server.execute("/open_gate", {"name": "g0"})
        begun: list[str] = []
        while len(begun) < 2:
            message = server.receive()
            if message.get("method") == "components/begun":
                begun += message["params"]["ids"]
        assert begun == waiting


def test_a_host_that_does_not_want_it_gets_no_notices_of_the_queue() -> None:
    with Client(SERVERS / "behaviours.py") as server:
        server.initialize(progress=True)
        for index in range(4):
            server.execute("/wait_for_gate", {"name": f"g{index}"})
        waiting = server.execute("/size", {"text": "abc"})
        server.execute("/open_gate", {"name": "g0"})
        received = [server.receive() for _ in range(3)]
        assert all("method" not in each for each in received)
        assert waiting in {each["id"] for each in received}


def test_a_cancelled_call_that_goes_on_leaves_its_thread_to_others() -> None:
    with Client(SERVERS / "behaviours.py") as server:
        server.initialize(queue=True)
        stuck = [server.execute("/wait_for_gate", {"name": "never"}) for _ in range(4)]
        behind = server.execute("/size", {"text": "abc"})
        assert server.receive()["params"]["ids"][-1] == behind
        for call in stuck:
            server.send(method="components/cancel", params={"id": call})
        while (message := server.receive()).get("id") != behind:
            assert message.get("method") == "components/begun"
        assert message["result"]["output"] == 3
