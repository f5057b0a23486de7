"""Checks of flows by the API: ValidateFlow, and the refusals of submissions, over real gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.api import api_mesh

from control_plane.api.flows import FlowsServicer
from stepflow.client import Client
from stepflow.codec import encode
from stepflow.errors import Invalid, StepflowError
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import state_pb2
from stepflow.routing.stored import encode_rules
from stepflow.routing.table import Rule
from stepflow.store import Delete, Put, Txn, keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.api import ApiMesh

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
OUTPUT = {"type": "object", "properties": {"text": {"type": "string"}}, "additionalProperties": False}


@pytest.fixture(scope="module")
def mesh() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as (mesh, run):
        yield mesh, run


@pytest.fixture
def offer(mesh: tuple[ApiMesh, Callable[..., Any]]) -> Iterator[Callable[..., None]]:
    """Give a function that registers a host with a plugin `mine`, beside the mesh's own."""
    parts, run = mesh
    rules, _ = encode_rules((Rule("mine"),), {"mine": "stepflow"})

    def register(*components: str, **members: Any) -> None:
        listed = [
            state_pb2.ComponentListing(
                component=f"/{name}",
                path=f"/{name}",
                input_schema_json=encode(SCHEMA),
                output_schema_json=encode(OUTPUT),
            )
            for name in components
        ]
        members = {"state": state_pb2.PluginListing.STATE_READY, "complete": True, **members}
        plugin = state_pb2.PluginListing(plugin="mine", type="stepflow", components=listed, **members)
        session = state_pb2.HostSession(plugins=[plugin]).SerializeToString()
        run(parts.store.txn(Txn((), (Put(keys.route("/mine"), rules), Put(keys.session_host("h"), session)))))
        run(seen(parts, session))

    yield register
    run(parts.store.txn(Txn((), (Delete(keys.route("/mine")), Delete(keys.session_host("h"))))))


async def seen(parts: ApiMesh, session: bytes) -> None:
    """Return once the control plane knows a session."""
    from support import wait_for_value

    offers = parts.mesh.control._offers

    async def known() -> bool:
        await offers.current()
        found = offers._sessions.get("h")
        return found is not None and found.value == session and "/mine" in offers._routes

    await wait_for_value(known, "the control plane knows the host")


def flow_of(component: str, input: Any = None, **members: Any) -> dict[str, Any]:
    return {"steps": [{"id": "a", "component": component, "input": input}], "output": {"$step": "a"}, **members}


def call(mesh: tuple[ApiMesh, Callable[..., Any]], method: str, *arguments: Any, **options: Any) -> Any:
    parts, run = mesh

    async def work() -> Any:
        async with Client(parts.address) as client:
            return await getattr(client, method)(*arguments, **options)

    return run(work())


def refusal(mesh: tuple[ApiMesh, Callable[..., Any]], *arguments: Any, **options: Any) -> Invalid:
    with pytest.raises(Invalid) as refused:
        call(mesh, "submit", *arguments, **options)
    return refused.value


def test_a_check_of_the_api_finds_what_a_submission_would_be_refused_for(mesh: Any, offer: Any) -> None:
    offer("ok")
    (found,) = [one for one in call(mesh, "validate_flow", flow_of("/mine/okk")) if one.level == "error"]
    assert (found.code, found.kind, found.path) == (2900, "unknownComponent", "$.steps[0].component")
    assert "did you mean `/mine/ok`?" in found.message
    assert found.data == {"step_id": "a", "component": "/mine/okk"}

    error = refusal(mesh, flow_of("/mine/okk"))
    assert error.reason == "FLOW_INVALID"
    assert found.message in error.message
    details: Any = error.details["diagnostics"]
    assert (details["numError"], details["diagnostics"][0]["formatted"]) == (1, found.message)


@pytest.mark.parametrize(
    ("flow", "codes"),
    [
        (flow_of("/mine/ok", {"name": 5}), [2100]),
        (flow_of("/mine/ok", {"name": "x"}, output={"$step": "a", "path": "txet"}), [2101]),
        (flow_of("/mine/ok", {"name": {"$variable": "who"}}), []),
    ],
    ids=["an input that cannot fit", "a path that cannot exist", "a variable that comes later"],
)
def test_a_check_knows_the_schemas_that_hosts_register(mesh: Any, offer: Any, flow: Any, codes: list[int]) -> None:
    offer("ok")
    found = call(mesh, "validate_flow", flow)
    assert [one.code for one in found if one.level == "error"] == codes


def test_missing_and_misspelt_variables_are_refused_by_their_own_reason(mesh: Any, offer: Any) -> None:
    offer("ok")
    flow = flow_of("/mine/ok", {"name": {"$variable": "who"}})
    error = refusal(mesh, flow, variables={"whoo": "x"})
    assert error.reason == "VARIABLES_INVALID"
    details: Any = error.details["diagnostics"]
    assert {one["code"] for one in details["diagnostics"] if one["level"] == "error"} == {2904, 2905}
    codes = [one.code for one in call(mesh, "validate_flow", flow, variables={}) if one.level == "error"]
    assert codes == [2904]


def test_an_incomplete_list_and_a_plugin_without_a_host_warn(mesh: Any, offer: Any) -> None:
    offer("ok", complete=False)
    found = call(mesh, "validate_flow", flow_of("/mine/okk"))
    assert {one.level for one in found if one.code == 2900} == {"warning"}
    offer(state=state_pb2.PluginListing.STATE_FAILED)
    assert not [one for one in call(mesh, "validate_flow", flow_of("/mine/okk")) if one.level == "error"]


def test_overrides_count_and_strict_types_are_told(mesh: Any, offer: Any) -> None:
    offer("ok")
    overrides = {"steps": {"a": {"value": {"component": "/mine/okk"}}}}
    right = flow_of("/mine/ok", {"name": {"$input": "who"}})
    assert [one.code for one in call(mesh, "validate_flow", right, overrides=overrides) if one.level == "error"] == [
        2900
    ]
    assert refusal(mesh, right, {}, overrides=overrides).reason == "FLOW_INVALID"
    assert not [one for one in call(mesh, "validate_flow", right) if one.code == 1101]
    strict = call(mesh, "validate_flow", right, type_check=True, strict=True)
    assert {one.level for one in strict if one.code == 1101} == {"error"}


def test_a_stored_flow_is_checked_by_name_and_is_refused_when_the_mesh_no_longer_offers_its_component(
    mesh: Any, offer: Any
) -> None:
    offer("ok")
    call(mesh, "store_flow", {"name": "greeting", **flow_of("/mine/ok", {"name": "Ada"})})
    assert not [one for one in call(mesh, "validate_flow", "greeting") if one.level == "error"]
    run_id = new_run_id()
    assert call(mesh, "submit", "greeting", run_id=run_id) == run_id

    offer("other")
    assert refusal(mesh, "greeting").reason == "FLOW_INVALID"
    assert call(mesh, "submit", "greeting", run_id=run_id) == run_id
    assert call(mesh, "submit", "greeting", check=False) != run_id


def test_each_of_several_submissions_is_refused_with_its_findings(mesh: Any, offer: Any) -> None:
    offer("ok")
    outcomes = call(mesh, "submit_runs", flow_of("/mine/okk"), [1, 2])
    assert [outcome.reason for outcome in outcomes] == ["FLOW_INVALID"] * 2
    assert outcomes[0].details["diagnostics"]["diagnostics"][0]["code"] == 2900


def test_a_batch_is_refused_before_its_inputs_are_read(mesh: Any, offer: Any) -> None:
    offer("ok")
    parts, run = mesh
    read: list[int] = []

    async def work() -> None:
        async def inputs() -> Any:
            for number in range(10):
                read.append(number)
                yield "x" * 1_000_000

        async with Client(parts.address) as client:
            with pytest.raises(Invalid, match="has found 1 error"):
                await client.submit_batch(flow_of("/mine/okk"), inputs())

    run(work())
    assert len(read) <= 10


def test_many_findings_of_long_texts_fit_into_a_refusal(mesh: Any, offer: Any) -> None:
    offer("ok")
    steps = [{"id": "ä" * 50 + str(number), "component": "/mine/" + "ü" * 90 + str(number)} for number in range(150)]
    error = refusal(mesh, {"steps": steps, "output": None})
    details: Any = error.details["diagnostics"]
    assert error.reason == "FLOW_INVALID"
    assert details["numError"] >= 2
    assert details["leftOut"] >= 100


def test_a_client_checks_the_flow_alone_at_a_server_of_an_earlier_version(
    mesh: Any, offer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer("ok")

    async def unknown(self: Any, _request: Any, context: Any) -> Any:
        import grpc

        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "method not found")

    monkeypatch.setattr(FlowsServicer, "ValidateFlow", unknown)
    parts, run = mesh

    async def work() -> list[int]:
        server = await parts.serve()
        async with Client(server.address) as client:
            return [one.code for one in await client.validate_flow(flow_of("/mine/okk", {"$step": "none"}))]

    assert 3003 in run(work())
    assert issubclass(Invalid, StepflowError)
