"""RunsService over real gRPC: requests are idempotent, errors have a status and a reason."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format, struct_pb2
from support.api import api_mesh
from support.schemas import BOMB

from stepflow.ids import new_run_id
from stepflow.mesh.v1 import flows_pb2, flows_pb2_grpc, journal_pb2, runs_pb2, runs_pb2_grpc, values_pb2
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import DOMAIN, error_of
from stepflow.store import keys, range_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from support.api import ApiMesh

JSON = values_pb2.VALUE_FORM_JSON
RUNNING, COMPLETED, FAILED, CANCELLED = 1, 2, 3, 4

ECHO = {
    "name": "echo",
    "steps": [{"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": 1}}],
    "output": {"said": {"$input": ""}, "slept": {"$step": "a"}},
}
LONG = {
    "name": "long",
    "steps": [{"id": "nap", "component": "/builtin/sleep", "input": {"duration_ms": 60_000}}],
    "output": {"$step": "nap"},
}
PICKY = {
    "schemas": {"type": "object", "properties": {"input": {"type": "object", "required": ["n"]}}},
    "output": {"$input": "n"},
}
FAILING = {
    "steps": [{"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": "no"}}],
    "output": {"$step": "a"},
}


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as given:
        yield given


@pytest.fixture
def ask(api: tuple[ApiMesh, Callable[..., Any]]) -> Callable[[Callable[[Api], Awaitable[Any]]], Any]:
    """Give what runs a conversation with the server on a channel of its own."""

    def converse(talk: Callable[[Api], Awaitable[Any]]) -> Any:
        async def with_channel() -> Any:
            async with open_channel(api[0].address) as channel:
                return await talk(Api(channel))

        return asyncio.run(with_channel())

    return converse


class Api:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.flows: Any = flows_pb2_grpc.FlowsServiceStub(channel)
        self.runs: Any = runs_pb2_grpc.RunsServiceStub(channel)

    async def submit(self, flow: Any, *inputs: Any, run_id: str = "", **members: Any) -> str:
        request = runs_pb2.SubmitRunRequest(
            run_id=run_id, flow=reference(flow), inputs=[json_value(value) for value in inputs], **members
        )
        return (await self.runs.SubmitRun(request)).run_id

    async def wait(self, run_id: str, timeout_ms: int = 0, form: Any = JSON) -> runs_pb2.WaitRunResponse:
        return await self.runs.WaitRun(
            runs_pb2.WaitRunRequest(run_id=run_id, timeout_ms=timeout_ms, include_items=True, value_form=form)
        )


def reference(flow: Any) -> flows_pb2.FlowReference:
    if isinstance(flow, flows_pb2.FlowReference):
        return flow
    return flows_pb2.FlowReference(document=json_value(flow))


def json_value(tree: Any) -> values_pb2.Value:
    return values_pb2.Value(json=json.dumps(tree).encode())


def struct_value(tree: Any) -> values_pb2.Value:
    value = values_pb2.Value()
    json_format.ParseDict(tree, value.value)
    return value


async def refused(call: Awaitable[Any]) -> tuple[str, str]:
    """Return status and reason of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code().name, error_of(failed.value).reason


# --- submission ---------------------------------------------------------------------------------------------------


def test_a_flow_runs_and_its_items_come_with_the_wait(ask: Any) -> None:
    async def talk(api: Api) -> runs_pb2.WaitRunResponse:
        return await api.wait(await api.submit(ECHO, {"x": 1}))

    reply = ask(talk)
    assert (reply.run.status, reply.run.items_completed, reply.run.flow_name) == (COMPLETED, 1, "echo")
    (item,) = reply.items
    assert item.outcome.result.json == b'{"said":{"x":1},"slept":{"duration_ms":1}}'


def test_integers_that_come_as_doubles_are_integers_again(ask: Any) -> None:
    """Conformance case 63: protobuf's Value knows no integers, and `duration_ms: 1.0` would be refused."""

    async def talk(api: Api) -> runs_pb2.WaitRunResponse:
        flow = flows_pb2.FlowReference(document=struct_value(ECHO))
        request = runs_pb2.SubmitRunRequest(flow=flow, inputs=[struct_value({"whole": 3, "half": 0.5})])
        return await api.wait((await api.runs.SubmitRun(request)).run_id)

    reply = ask(talk)
    assert reply.items[0].outcome.result.json == b'{"said":{"half":0.5,"whole":3},"slept":{"duration_ms":1}}'


def test_values_come_back_in_the_form_asked_for(ask: Any) -> None:
    async def talk(api: Api) -> list[Any]:
        run_id = await api.submit({"output": {"$input": ""}}, {"a": [1, None, "x", True, 0.5]})
        forms = (values_pb2.VALUE_FORM_UNSPECIFIED, JSON, values_pb2.VALUE_FORM_BLOB_ID)
        return [(await api.wait(run_id, form=form)).items[0].outcome.result for form in forms]

    by_hand, exact, blob = ask(talk)
    assert json_format.MessageToDict(by_hand.value) == {"a": [1, None, "x", True, 0.5]}
    assert exact.json == b'{"a":[1,null,"x",true,0.5]}'
    assert len(blob.blob_id) == 64


def test_a_value_too_deep_for_protobuf_is_refused_as_value_and_given_as_json(ask: Any) -> None:
    deep = b"[" * 40 + b"]" * 40

    async def talk(api: Api) -> Any:
        run_id = await api.submit({"output": {"$input": ""}}, json.loads(deep))
        exact = (await api.wait(run_id)).items[0].outcome.result.json
        return exact, await refused(api.wait(run_id, form=values_pb2.VALUE_FORM_VALUE))

    assert ask(talk) == (deep, ("INVALID_ARGUMENT", "VALUE_TOO_DEEP"))


def test_fifty_clients_with_one_run_id_make_one_run(ask: Any, api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    run_id = new_run_id()

    async def one() -> str:
        async with open_channel(api[0].address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            return await Api(channel).submit(ECHO, "same", run_id=run_id)

    async def fifty() -> list[str]:
        return await asyncio.gather(*(one() for _ in range(50)))

    async def records() -> list[str]:
        return [item.key async for item in range_all(api[0].store, keys.run(run_id))]

    assert set(asyncio.run(fifty())) == {run_id}
    assert len(api[1](records())) == 1


def test_a_submission_by_name_can_be_repeated_although_the_name_means_another_version_now(ask: Any) -> None:
    run_id = new_run_id()
    named = flows_pb2.FlowReference(named=flows_pb2.NamedFlow(name="moving"))

    async def store(api: Api, answer: int) -> None:
        document = json_value({"name": "moving", "output": answer})
        await api.flows.StoreFlow(flows_pb2.StoreFlowRequest(document=document))

    async def talk(api: Api) -> Any:
        await store(api, 1)
        first = await api.submit(named, None, run_id=run_id)
        await store(api, 2)
        again = await api.submit(named, None, run_id=run_id)
        other = await refused(api.submit(named, "another input", run_id=run_id))
        return first, again, other, (await api.wait(run_id)).items[0].outcome.result.json

    assert ask(talk) == (run_id, run_id, ("ALREADY_EXISTS", "RUN_EXISTS"), b"1")


@pytest.mark.parametrize(
    ("flow", "inputs", "members", "expected"),
    [
        (flows_pb2.FlowReference(), [None], {}, ("INVALID_ARGUMENT", "FLOW_MISSING")),
        (flows_pb2.FlowReference(flow_id="0" * 64), [None], {}, ("NOT_FOUND", "FLOW_NOT_FOUND")),
        (
            flows_pb2.FlowReference(named=flows_pb2.NamedFlow(name="nobody")),
            [None],
            {},
            ("NOT_FOUND", "FLOW_NAME_NOT_FOUND"),
        ),
        ({"output": {"$step": "missing"}}, [None], {}, ("INVALID_ARGUMENT", "FLOW_INVALID")),
        (PICKY, [{}], {}, ("INVALID_ARGUMENT", "INPUT_INVALID")),
        (ECHO, [None], {"run_id": "nonsense"}, ("INVALID_ARGUMENT", "RUN_ID_INVALID")),
    ],
)
def test_what_cannot_run_is_refused_with_a_reason(
    ask: Any, flow: Any, inputs: list[Any], members: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert ask(lambda api: refused(api.submit(flow, *inputs, **members))) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (values_pb2.Value(), ("INVALID_ARGUMENT", "VALUE_MISSING")),
        (values_pb2.Value(json=b"{not json"), ("INVALID_ARGUMENT", "JSON_INVALID")),
        (values_pb2.Value(blob_id="0" * 64), ("NOT_FOUND", "BLOB_NOT_FOUND")),
        (values_pb2.Value(blob_id="short"), ("INVALID_ARGUMENT", "BLOB_ID_INVALID")),
        (
            values_pb2.Value(value=struct_pb2.Value(number_value=float("nan"))),
            ("INVALID_ARGUMENT", "NUMBER_NOT_FINITE"),
        ),
    ],
)
def test_a_bad_input_is_refused_with_a_reason(ask: Any, value: values_pb2.Value, expected: tuple[str, str]) -> None:
    request = runs_pb2.SubmitRunRequest(flow=reference(ECHO), inputs=[value])
    assert ask(lambda api: refused(api.runs.SubmitRun(request))) == expected


def test_a_schema_that_would_take_for_ever_keeps_nobody_from_an_answer(ask: Any) -> None:
    flow = {"schemas": {"properties": {"input": BOMB}}, "output": {"$input": "$"}}

    async def talk(api: Api) -> None:
        hostile = [asyncio.create_task(refused(api.submit(flow, "xxxx"))) for _ in range(10)]
        run_id = await asyncio.wait_for(api.submit(ECHO, 1), 5)
        assert (await asyncio.wait_for(api.wait(run_id), 5)).run.status == COMPLETED
        assert set(await asyncio.wait_for(asyncio.gather(*hostile), 5)) == {("INVALID_ARGUMENT", "SCHEMA_TOO_LARGE")}

    ask(talk)


def test_an_error_carries_error_info_of_our_domain(ask: Any) -> None:
    async def talk(api: Api) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await api.runs.GetRun(runs_pb2.GetRunRequest(run_id=new_run_id()))
        return failed.value

    from google.rpc import error_details_pb2, status_pb2

    failed = ask(talk)
    (details,) = [value for key, value in failed.trailing_metadata() if key == "grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert (info.domain, info.reason) == (DOMAIN, "RUN_NOT_FOUND")


def test_many_runs_in_one_call_are_admitted_each_by_itself(ask: Any) -> None:
    async def talk(api: Api) -> Any:
        good = runs_pb2.SubmitRunRequest(flow=reference(ECHO), inputs=[json_value(1)])
        bad = runs_pb2.SubmitRunRequest(flow=flows_pb2.FlowReference(flow_id="0" * 64))
        return await api.runs.SubmitRuns(runs_pb2.SubmitRunsRequest(runs=[good, bad, good]))

    first, second, third = ask(talk).outcomes
    assert first.run_id != third.run_id
    assert (second.rejection.status, second.rejection.reason) == ("NOT_FOUND", "FLOW_NOT_FOUND")


def test_variables_overrides_and_labels_reach_the_run(ask: Any) -> None:
    flow = {
        "schemas": {"type": "object", "properties": {"variables": {"type": "object", "properties": {"who": {}}}}},
        "steps": [{"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": 60_000}}],
        "output": {"hello": {"$variable": "who"}, "slept": {"$step": "a"}},
    }

    async def talk(api: Api) -> runs_pb2.WaitRunResponse:
        labels = struct_pb2.Struct()
        labels.update({"team": "blue", "size": 3})
        overrides = json_value({"steps": {"a": {"value": {"input": {"duration_ms": 1}}}}})
        run_id = await api.submit(flow, None, variables={"who": json_value("Ada")}, overrides=overrides, labels=labels)
        return await api.wait(run_id)

    reply = ask(talk)
    assert reply.items[0].outcome.result.json == b'{"hello":"Ada","slept":{"duration_ms":1}}'
    assert json_format.MessageToDict(reply.run.labels) == {"team": "blue", "size": 3}


# --- reading and ending -------------------------------------------------------------------------------------------


def test_a_wait_that_times_out_gives_the_run_as_it_is(ask: Any) -> None:
    """Conformance case 59."""

    async def talk(api: Api) -> runs_pb2.WaitRunResponse:
        run_id = await api.submit(LONG, None)
        reply = await api.wait(run_id, timeout_ms=50)
        await api.runs.CancelRun(runs_pb2.CancelRunRequest(run_id=run_id))
        return reply

    reply = ask(talk)
    assert (reply.run.status, reply.run.completed_at_ms) == (RUNNING, 0)
    assert [(item.status, item.HasField("outcome")) for item in reply.items] == [(RUNNING, False)]


def test_a_cancelled_run_ends_and_can_then_be_deleted_but_not_before(
    ask: Any, api: tuple[ApiMesh, Callable[..., Any]]
) -> None:
    """Conformance case 60, and that nothing of the run is left."""

    async def talk(api: Api) -> Any:
        run_id = await api.submit(LONG, "x" * 40_000)
        request = runs_pb2.DeleteRunRequest(run_id=run_id)
        early = await refused(api.runs.DeleteRun(request))
        await api.runs.CancelRun(runs_pb2.CancelRunRequest(run_id=run_id))
        ended = (await api.wait(run_id)).run
        again = (await api.runs.CancelRun(runs_pb2.CancelRunRequest(run_id=run_id))).run
        await api.runs.DeleteRun(request)
        return run_id, early, ended.status, again.status, await refused(api.runs.DeleteRun(request))

    run_id, early, ended, again, late = ask(talk)
    assert early == ("FAILED_PRECONDITION", "RUN_NOT_ENDED")
    assert (ended, again) == (CANCELLED, CANCELLED)
    assert late == ("NOT_FOUND", "RUN_NOT_FOUND")

    async def left() -> list[str]:
        return [item.key async for item in range_all(api[0].store, "") if run_id in item.key]

    # The leader deletes this key when no segment has the run.
    assert api[1](left()) == [keys.deleted(run_id)]


def test_a_failed_item_is_an_outcome_and_no_error(ask: Any) -> None:
    async def talk(api: Api) -> runs_pb2.WaitRunResponse:
        return await api.wait(await api.submit(FAILING, None))

    reply = ask(talk)
    assert reply.run.status == FAILED
    assert reply.items[0].outcome.failure.code == journal_pb2.FAILURE_CODE_INVALID_INPUT


def test_items_come_in_pages_in_order(ask: Any) -> None:
    async def talk(api: Api) -> Any:
        run_id = await api.submit({"output": {"$input": ""}}, *range(150))
        await api.wait(run_id)
        sizes, results, token = [], [], ""
        while True:
            request = runs_pb2.ListItemsRequest(run_id=run_id, value_form=JSON, page_size=60, page_token=token)
            page = await api.runs.ListItems(request)
            sizes.append(len(page.items))
            results += [int(item.outcome.result.json) for item in page.items]
            token = page.next_page_token
            if not token:
                return sizes, results

    assert ask(talk) == ([60, 60, 30], list(range(150)))


def test_pages_of_large_items_are_short_enough_to_receive(ask: Any) -> None:
    async def talk(api: Api) -> Any:
        run_id = await api.submit({"output": {"$input": ""}}, *("x" * 600_000 for _ in range(4)))
        await api.wait(run_id, timeout_ms=30_000)
        page = await api.runs.ListItems(runs_pb2.ListItemsRequest(run_id=run_id, value_form=JSON))
        return len(page.items), bool(page.next_page_token)

    assert ask(talk) == (2, True)


def test_steps_come_in_pages_with_their_results_if_wanted(ask: Any) -> None:
    async def talk(api: Api) -> Any:
        run_id = await api.submit(ECHO, *range(70))
        await api.wait(run_id)
        plain = await api.runs.ListSteps(runs_pb2.ListStepsRequest(run_id=run_id, page_size=1000))
        first = await api.runs.ListSteps(
            runs_pb2.ListStepsRequest(run_id=run_id, page_size=66, include_results=True, value_form=JSON)
        )
        second = await api.runs.ListSteps(
            runs_pb2.ListStepsRequest(run_id=run_id, page_size=66, page_token=first.next_page_token)
        )
        return plain, first, second

    plain, first, second = ask(talk)
    assert [step.step.item for step in plain.steps] == list(range(70))
    assert [step.step.item for page in (first, second) for step in page.steps] == list(range(70))
    assert first.steps[0].outcome.result.json == b'{"duration_ms":1}'
    assert not plain.steps[0].HasField("outcome")
    assert not second.next_page_token


def test_runs_are_listed_newest_first_by_pages_and_filters(ask: Any) -> None:
    async def submit_in_turn(api: Api) -> list[str]:
        ids = []
        for number in range(5):
            ids.append(await api.submit({"name": "listed", "output": 1}, None))
            await api.wait(ids[-1])
            assert number < 5
        return ids

    async def listed(api: Api, **members: Any) -> list[list[str]]:
        pages, token = [], ""
        while True:
            request = runs_pb2.ListRunsRequest(flow_name="listed", page_token=token, **members)
            page = await api.runs.ListRuns(request)
            pages.append([run.run_id for run in page.runs])
            token = page.next_page_token
            if not token:
                return pages

    async def talk(api: Api) -> Any:
        ids = await submit_in_turn(api)
        await api.submit(LONG, None)
        created = [(await api.runs.GetRun(runs_pb2.GetRunRequest(run_id=each))).run.created_at_ms for each in ids]
        return (
            ids,
            await listed(api, page_size=2),
            await listed(api, statuses=[FAILED, RUNNING]),
            await listed(api, statuses=[COMPLETED], created_since_ms=created[3]),
            created,
        )

    ids, pages, failed, recent, created = ask(talk)
    flat = [each for page in pages for each in page]
    assert sorted(flat) == sorted(ids)
    assert [created[ids.index(each)] for each in flat] == sorted(created, reverse=True)
    assert max(map(len, pages)) == 2
    assert failed == [[]]
    assert set(recent[0]) == {each for each, at_ms in zip(ids, created, strict=True) if at_ms >= created[3]}


@pytest.mark.parametrize("token", ["x", "!!!", "bm9wZQ", "WzEsMiwzXQ"])
def test_a_forged_page_token_is_refused(ask: Any, token: str) -> None:
    async def talk(api: Api) -> Any:
        return await refused(api.runs.ListRuns(runs_pb2.ListRunsRequest(page_token=token)))

    assert ask(talk) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


def test_five_hundred_runs_with_four_waiters_each_are_answered(ask: Any) -> None:
    async def talk(api: Api) -> Any:
        request = runs_pb2.SubmitRunRequest(flow=reference(ECHO), inputs=[json_value(1)])
        submitted = await api.runs.SubmitRuns(runs_pb2.SubmitRunsRequest(runs=[request] * 500))
        ids = [outcome.run_id for outcome in submitted.outcomes]
        waits = [api.runs.WaitRun(runs_pb2.WaitRunRequest(run_id=each, timeout_ms=60_000)) for each in ids * 4]
        return [reply.run.status for reply in await asyncio.gather(*waits)]

    assert ask(talk) == [COMPLETED] * 2000
