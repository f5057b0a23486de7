"""The API's entry (TLS, health, reflection, errors), and its small services."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support.api import api_mesh
from support.authority import Authority

from stepflow.client import Client
from stepflow.errors import FailedPrecondition, Invalid, Unavailable
from stepflow.mesh.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    components_pb2,
    components_pb2_grpc,
    flows_pb2,
    flows_pb2_grpc,
    state_pb2,
    values_pb2,
)
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of
from stepflow.rpc.tls import Tls, is_loopback
from stepflow.store import delete, keys, put

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from support.api import ApiMesh

SERVICES = {
    "stepflow.mesh.v1.FlowsService",
    "stepflow.mesh.v1.RunsService",
    "stepflow.mesh.v1.BlobsService",
    "stepflow.mesh.v1.ComponentsService",
    "stepflow.mesh.v1.ClusterService",
}
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as given:
        yield given


async def refused(call: Awaitable[Any]) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code().name, error_of(failed.value).reason


def converse(address: str, talk: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
    async def with_channel() -> Any:
        async with open_channel(address) as channel:
            return await talk(channel)

    return asyncio.run(with_channel())


# --- TLS ----------------------------------------------------------------------------------------------------------


def authorities(folder: Path) -> tuple[Authority, Authority]:
    made = []
    for name in ("ours", "others"):
        (folder / name).mkdir()
        made.append(Authority(folder / name))
    return made[0], made[1]


async def ask_cluster(address: str, tls: Tls | None) -> str:
    async with Client(address, tls=tls, patience_s=0) as client:
        return (await client.cluster()).control_plane_id


def test_tls_serves_who_trusts_the_authority_and_nobody_else(api: Any, tmp_path: Path) -> None:
    mesh, run = api
    ours, others = authorities(tmp_path)
    cert, key = ours.issue("server")
    server = run(mesh.serve(tls=Tls(cert=cert, key=key)))
    assert asyncio.run(ask_cluster(server.address, Tls(ca=ours.ca))) == mesh.mesh.control.id
    for tls in (Tls(ca=others.ca), None):
        with pytest.raises(Unavailable) as failed:
            asyncio.run(ask_cluster(server.address, tls))
        assert failed.value.reason == "SERVER_UNAVAILABLE"


def test_mutual_tls_serves_clients_of_the_authority_alone(api: Any, tmp_path: Path) -> None:
    mesh, run = api
    ours, others = authorities(tmp_path)
    cert, key = ours.issue("server")
    server = run(mesh.serve(tls=Tls(cert=cert, key=key, ca=ours.ca)))
    good = Tls(*ours.issue("client"), ca=ours.ca)
    assert asyncio.run(ask_cluster(server.address, good)) == mesh.mesh.control.id
    for tls in (Tls(ca=ours.ca), Tls(*others.issue("stranger"), ca=ours.ca)):
        with pytest.raises(Unavailable):
            asyncio.run(ask_cluster(server.address, tls))


def test_beyond_loopback_there_is_tls_or_a_word_that_there_is_none(api: Any) -> None:
    mesh, run = api
    with pytest.raises(Invalid) as refusal:
        run(mesh.serve("0.0.0.0:0"))
    assert refusal.value.reason == "TLS_REQUIRED"
    server = run(mesh.serve("0.0.0.0:0", insecure=True))
    address = f"127.0.0.1:{server.address.rpartition(':')[2]}"
    assert asyncio.run(ask_cluster(address, None)) == mesh.mesh.control.id


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.com:1", False),
    ],
)
def test_what_loopback_is(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_a_port_that_is_taken_and_an_address_that_is_none_are_refused(api: Any) -> None:
    mesh, run = api
    with pytest.raises(FailedPrecondition) as taken:
        run(mesh.serve(mesh.address))
    assert taken.value.reason == "LISTEN_FAILED"
    with pytest.raises(Invalid) as nonsense:
        run(mesh.serve("nonsense"))
    assert nonsense.value.reason == "ADDRESS_INVALID"


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_bad_tls_file_is_named(api: Any, tmp_path: Path, content: bytes | None) -> None:
    mesh, run = api
    path = tmp_path / "bad.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Invalid, match=r"bad\.pem") as refusal:
        run(mesh.serve(tls=Tls(cert=path, key=path)))
    assert refusal.value.reason == "TLS_INVALID"


# --- health and reflection ----------------------------------------------------------------------------------------


def test_health_answers_for_the_server_and_each_service(api: Any) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async def talk(channel: grpc.aio.Channel) -> set[int]:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        names = ("", *SERVICES)
        return {(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names}

    assert converse(api[0].address, talk) == {health_pb2.HealthCheckResponse.SERVING}


def test_reflection_lists_the_services_and_has_their_messages(api: Any) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="stepflow.mesh.v1.RunsService"),
        ]
        return [reply async for reply in stub.ServerReflectionInfo(iter(requests))]

    listed, described = converse(api[0].address, talk)
    assert {service.name for service in listed.list_services_response.service} >= SERVICES
    assert b"SubmitRunRequest" in b"".join(described.file_descriptor_response.file_descriptor_proto)


def test_a_defect_is_internal_and_says_nothing_of_its_cause(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepflow import telemetry

    monkeypatch.setattr(telemetry.Logger, "exception", lambda *_, **__: None)
    monkeypatch.setattr(api[0].store, "get", None)

    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.GetCluster(cluster_pb2.GetClusterRequest())
        return failed.value

    failed = converse(api[0].address, talk)
    assert (failed.code().name, error_of(failed).reason) == ("INTERNAL", "SERVER_DEFECT")
    assert "NoneType" not in failed.details()


def test_a_request_without_memory_for_its_answer_is_told_to_ask_for_less(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def greedy(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(api[0].store, "get", greedy)

    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.GetCluster(cluster_pb2.GetClusterRequest())
        return error_of(failed.value)

    assert converse(api[0].address, talk).reason == "OUT_OF_MEMORY"


# --- flows --------------------------------------------------------------------------------------------------------


def flow(name: str, answer: Any) -> values_pb2.Value:
    import json

    return values_pb2.Value(json=json.dumps({"name": name, "output": answer}).encode())


def test_versions_of_a_flow_gather_under_its_name_and_labels_move(api: Any) -> None:
    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = flows_pb2_grpc.FlowsServiceStub(channel)

        async def store(answer: int, label: str = "") -> flows_pb2.StoreFlowResponse:
            return await stub.StoreFlow(flows_pb2.StoreFlowRequest(document=flow("versions/a b", answer), label=label))

        async def get(label: str = "") -> bytes:
            named = flows_pb2.FlowReference(named=flows_pb2.NamedFlow(name="versions/a b", label=label))
            request = flows_pb2.GetFlowRequest(flow=named, value_form=values_pb2.VALUE_FORM_JSON)
            return (await stub.GetFlow(request)).document.json

        versions = [(await store(1, "live")).version, (await store(2)).version, (await store(2)).version]
        before = await get("live"), await get()
        moved = await store(2, "live")
        assert (moved.version, moved.newest_version, moved.label_from) == (2, 2, 1)
        after = await get("live")
        again = await store(1)  # an old version, stored again, hides no newer one
        assert (again.version, again.newest_version, again.label_from) == (1, 2, 0)
        assert (await get("1"), await get("2")) == before
        assert await refused(store(1, "7")) == ("INVALID_ARGUMENT", "LABEL_INVALID")
        assert await refused(store(1, "live@home")) == ("INVALID_ARGUMENT", "LABEL_INVALID")
        listed = await stub.ListFlows(flows_pb2.ListFlowsRequest(name_prefix="versions/"))
        await stub.DeleteFlow(flows_pb2.DeleteFlowRequest(name="versions/a b", label="live"))
        no_label = await refused(get("live"))
        newest = await get()
        await stub.DeleteFlow(flows_pb2.DeleteFlowRequest(name="versions/a b"))
        return versions, before, after, listed, no_label, newest, await refused(get())

    versions, before, after, listed, no_label, newest, gone = converse(api[0].address, talk)
    one, two = b'{"name":"versions/a b","output":1}', b'{"name":"versions/a b","output":2}'
    assert versions == [1, 2, 2]
    assert before == (one, two)
    assert after == two
    assert [(v.version, list(v.labels)) for v in listed.flows[0].versions] == [(1, []), (2, ["live"])]
    assert no_label == ("NOT_FOUND", "LABEL_NOT_FOUND")
    assert newest == two
    assert gone == ("NOT_FOUND", "FLOW_NAME_NOT_FOUND")


def test_many_who_store_versions_at_once_lose_none(api: Any) -> None:
    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = flows_pb2_grpc.FlowsServiceStub(channel)
        requests = [flows_pb2.StoreFlowRequest(document=flow("crowded", n)) for n in range(12)]
        replies = await asyncio.gather(*(stub.StoreFlow(request) for request in requests))
        return sorted(reply.version for reply in replies)

    assert converse(api[0].address, talk) == list(range(1, 13))


def test_validation_tells_everything_and_stores_nothing(api: Any) -> None:
    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = flows_pb2_grpc.FlowsServiceStub(channel)
        fatal = flow("never stored", {"$step": "missing"})
        reply = await stub.StoreFlow(flows_pb2.StoreFlowRequest(document=fatal, validate_only=True))
        reference = flows_pb2.FlowReference(flow_id=reply.flow_id)
        return (
            reply,
            await refused(stub.GetFlow(flows_pb2.GetFlowRequest(flow=reference))),
            await refused(stub.StoreFlow(flows_pb2.StoreFlowRequest(document=fatal))),
            await refused(stub.StoreFlow(flows_pb2.StoreFlowRequest(document=values_pb2.Value(json=b"[]")))),
        )

    reply, absent, fatal, shapeless = converse(api[0].address, talk)
    assert (reply.stored, reply.version) == (False, 0)
    assert (3003, flows_pb2.FlowDiagnostic.LEVEL_FATAL) in [(found.code, found.level) for found in reply.diagnostics]
    assert absent == ("NOT_FOUND", "FLOW_NOT_FOUND")
    assert fatal == ("INVALID_ARGUMENT", "FLOW_INVALID")
    assert shapeless[0] == "INVALID_ARGUMENT"


def test_one_flow_has_one_id_however_it_comes(api: Any) -> None:
    """Conformance case 62; members of a `Value` have no order, so they are sorted: ids agree where order does."""
    from google.protobuf import json_format

    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = flows_pb2_grpc.FlowsServiceStub(channel)
        value = values_pb2.Value()
        json_format.ParseDict({"output": {"b": 2, "a": 1}}, value.value)
        forms = (value, value, values_pb2.Value(json=b'{"output": {"a": 1, "b": 2}}'))
        return {(await stub.StoreFlow(flows_pb2.StoreFlowRequest(document=form))).flow_id for form in forms}

    assert len(converse(api[0].address, talk)) == 1


# --- blobs, components, cluster -----------------------------------------------------------------------------------


def test_blobs_travel_whole_and_in_pieces(api: Any) -> None:
    content = bytes(range(256)) * (10 * 1024)

    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = blobs_pb2_grpc.BlobsServiceStub(channel)
        whole = await stub.PutBlob(blobs_pb2.PutBlobRequest(content=content, blob_type="binary"))
        pieces = [
            blobs_pb2.UploadBlobRequest(chunk=content[start : start + MIB], blob_type="binary")
            for start in range(0, len(content), MIB)
        ]
        uploaded = await stub.UploadBlob(iter(pieces))
        got = await stub.GetBlob(blobs_pb2.GetBlobRequest(blob_id=whole.blob_id))
        down = [reply async for reply in stub.DownloadBlob(blobs_pb2.DownloadBlobRequest(blob_id=whole.blob_id))]
        return whole.blob_id == uploaded.blob_id, got, down

    same, got, down = converse(api[0].address, talk)
    assert same
    assert (got.content == content, got.blob_type) == (True, "binary")
    assert b"".join(reply.chunk for reply in down) == content
    assert max(len(reply.chunk) for reply in down) == MIB
    assert (down[0].content_bytes, down[0].blob_type) == (len(content), "binary")


def test_a_blob_above_the_limit_is_refused_whole_and_in_pieces(api: Any) -> None:
    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = blobs_pb2_grpc.BlobsServiceStub(channel)
        pieces = (blobs_pb2.UploadBlobRequest(chunk=bytes(MIB)) for _ in range(17))
        return (
            await refused(stub.PutBlob(blobs_pb2.PutBlobRequest(content=bytes(16 * MIB + 1)))),
            await refused(stub.UploadBlob(pieces)),
            await refused(stub.UploadBlob(iter([blobs_pb2.UploadBlobRequest(chunk=bytes(MIB + 1))]))),
            await refused(stub.GetBlob(blobs_pb2.GetBlobRequest(blob_id="0" * 64))),
        )

    assert converse(api[0].address, talk) == (
        ("INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE"),
        ("INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE"),
        ("INVALID_ARGUMENT", "CHUNK_TOO_LARGE"),
        ("NOT_FOUND", "BLOB_NOT_FOUND"),
    )


@pytest.fixture
def host(api: Any) -> Iterator[None]:
    """A host's session, as a host writes it."""
    mesh, run = api
    session = state_pb2.HostSession(address="127.0.0.1:1", capacity=8, rules_hash="h")
    listing = session.plugins.add(plugin="text", type="stepflow", complete=True, state="STATE_READY")
    listing.components.add(
        component="upper", path="/upper", description="Shouts.", input_schema_json=b'{"type":"string"}'
    )
    broken = session.plugins.add(plugin="broken", type="mcp", state="STATE_FAILED", last_error="no such command")
    broken.complete = True
    run(put(mesh.store, keys.session_host("h1"), session.SerializeToString()))
    run(put(mesh.store, keys.session_host("h2"), session.SerializeToString()))
    yield
    run(delete(mesh.store, keys.session_host("h1")))
    run(delete(mesh.store, keys.session_host("h2")))


@pytest.mark.usefixtures("host")
def test_components_are_those_of_the_live_hosts(api: Any) -> None:
    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = components_pb2_grpc.ComponentsServiceStub(channel)
        asked = components_pb2.GetComponentRequest(plugin="text", component="upper", value_form="VALUE_FORM_JSON")
        missing = components_pb2.GetComponentRequest(plugin="text", component="lower")
        return (
            await stub.ListComponents(components_pb2.ListComponentsRequest(plugin="text")),
            (await stub.GetComponent(asked)).component,
            await refused(stub.GetComponent(missing)),
        )

    listed, upper, missing = converse(api[0].address, talk)
    assert [(c.plugin, c.path, list(c.host_ids)) for c in listed.components] == [("text", "/upper", ["h1", "h2"])]
    assert not listed.components[0].HasField("input_schema")
    assert (upper.description, upper.input_schema.json) == ("Shouts.", b'{"type":"string"}')
    assert missing == ("NOT_FOUND", "COMPONENT_NOT_FOUND")


@pytest.mark.usefixtures("host")
def test_the_cluster_shows_leader_executors_and_hosts(api: Any) -> None:
    async def talk() -> Any:
        async with Client(api[0].address) as client:
            return await client.cluster(), await client.components()

    cluster, components = asyncio.run(talk())
    assert cluster.control_plane_id == api[0].mesh.control.id
    assert [executor.executor_id for executor in cluster.executors] == [api[0].mesh.executor.id]
    assert [host.host_id for host in cluster.hosts] == ["h1", "h2"]
    assert [(p.plugin, p.state, p.last_error) for p in cluster.hosts[0].plugins] == [
        ("text", "ready", ""),
        ("broken", "failed", "no such command"),
    ]
    assert components[0].input_schema == {"type": "string"}


def test_a_state_that_only_a_later_version_knows_hides_no_host(api: Any) -> None:
    mesh, run = api
    session = state_pb2.HostSession(address="127.0.0.1:1")
    session.plugins.add(plugin="text", type="stepflow", state=99)  # type: ignore[arg-type]  # the point
    run(put(mesh.store, keys.session_host("h3"), session.SerializeToString()))

    async def talk() -> Any:
        async with Client(mesh.address) as client:
            return await client.cluster()

    try:
        (host,) = asyncio.run(talk()).hosts
        assert [(plugin.plugin, plugin.state) for plugin in host.plugins] == [("text", "unknown (99)")]
    finally:
        run(delete(mesh.store, keys.session_host("h3")))


def test_an_embedded_mesh_cannot_be_drained(api: Any) -> None:
    async def talk(channel: grpc.aio.Channel) -> Any:
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
        return (
            await refused(stub.Drain(cluster_pb2.DrainRequest(executor_id="x"))),
            await refused(stub.Drain(cluster_pb2.DrainRequest())),
        )

    assert converse(api[0].address, talk) == (
        ("FAILED_PRECONDITION", "DRAIN_UNSUPPORTED"),
        ("INVALID_ARGUMENT", "DRAIN_TARGET_MISSING"),
    )
