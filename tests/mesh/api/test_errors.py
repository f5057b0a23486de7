"""Errors on the wire: each family maps to its gRPC status and back to the same class, with all its data."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import pytest

from stepflow import errors, telemetry
from stepflow.client import Client
from stepflow.mesh.v1 import blobs_pb2, blobs_pb2_grpc
from stepflow.rpc.errors import ERROR_TEXT_BYTES_MAX, family
from stepflow.rpc.server import RpcServer

if TYPE_CHECKING:
    from stepflow.errors import StepflowError

FAMILIES = (
    errors.Invalid,
    errors.NotFound,
    errors.Exists,
    errors.Refused,
    errors.Conflict,
    errors.Overloaded,
    errors.Deadline,
    errors.DataLoss,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.Unavailable,
)


class Failing(blobs_pb2_grpc.BlobsServiceServicer):
    """Answers every question with the same error."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    async def GetBlob(self, _request: Any, _: Any) -> Any:  # noqa: N802  # the RPC's name
        self.calls += 1
        raise self.error


def thrown(error: Exception, *, patience_s: float = 0.0) -> tuple[StepflowError, int]:
    """Return what a client gets when the server raises an error, and how often it asked."""

    async def talk() -> tuple[StepflowError, int]:
        server, servicer = RpcServer(), Failing(error)
        service = blobs_pb2.DESCRIPTOR.services_by_name["BlobsService"]
        server.add(service, blobs_pb2_grpc.add_BlobsServiceServicer_to_server, servicer)
        address = await server.start("127.0.0.1:0")
        try:
            async with Client(address, patience_s=patience_s) as client:
                with pytest.raises(errors.StepflowError) as caught:
                    await client.get_blob("x")
            return caught.value, servicer.calls
        finally:
            await server.stop()

    return asyncio.run(talk())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_comes_back_as_itself_with_reason_text_and_details(kind: type[StepflowError]) -> None:
    error, _ = thrown(kind("SOME_REASON", "what happened, with ünïcödé", flow_id="abc", count=3))
    assert type(error) is kind
    assert (error.reason, error.message) == ("SOME_REASON", "what happened, with ünïcödé")
    assert (error.details["flow_id"], error.details["count"]) == ("abc", "3")
    assert family(kind.status) is kind


def test_texts_and_details_of_any_size_fit_the_headers() -> None:
    details = {f"d{n}": "x" * 900 for n in range(30)}
    error, _ = thrown(errors.Invalid("LONG", "ä" * 50_000, huge="y" * 100_000, nested=[1] * 10_000, **details))
    assert error.reason == "LONG"
    assert 100 <= len(error.message) <= ERROR_TEXT_BYTES_MAX
    assert "huge" not in error.details


def test_only_what_may_be_repeated_is_repeated() -> None:
    _, tries = thrown(errors.Unavailable("AWAY", "for now"), patience_s=0.5)
    assert tries > 2
    for kind in FAMILIES[:-1]:
        _, tries = thrown(kind("NO", "never"), patience_s=0.5)
        assert tries == 1, kind


def test_a_defect_keeps_its_text_to_itself() -> None:
    log = io.StringIO()
    telemetry.configure(destination=log)
    try:
        error, tries = thrown(RuntimeError("the secret payload"), patience_s=0.5)
    finally:
        telemetry.configure()
    assert (type(error), error.reason, tries) == (errors.Refused, "SERVER_DEFECT", 1)
    assert "secret" not in error.message
    assert "call failed by a defect" in log.getvalue()
