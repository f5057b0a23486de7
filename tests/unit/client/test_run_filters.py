"""`client.list_runs` gives no wrong runs, even if a server of an earlier version ignores a filter."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stepflow.client import Client
from stepflow.mesh.v1 import runs_pb2
from stepflow.mesh.v1.journal_pb2 import RUN_STATUS_COMPLETED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


def test_labels_are_filtered_again_for_a_server_that_ignores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[runs_pb2.ListRunsRequest] = []

    async def pages(_: Client, __: Any, request: runs_pb2.ListRunsRequest) -> AsyncIterator[runs_pb2.ListRunsResponse]:
        requests.append(request)
        for labels in ({"team": "red", "size": 2}, {"team": "blue"}, {}):
            run = runs_pb2.Run(run_id=str(len(labels)), status=RUN_STATUS_COMPLETED)
            run.labels.update(labels)
            yield runs_pb2.ListRunsResponse(runs=[run])

    monkeypatch.setattr(Client, "_pages", pages)

    async def listed(labels: dict[str, str]) -> list[str]:
        async with Client("localhost:1") as client:
            return [run.run_id async for run in client.list_runs(labels=labels)]

    assert asyncio.run(listed({})) == ["2", "1", "0"]
    assert asyncio.run(listed({"team": "red", "size": "2"})) == ["2"]
    assert dict(requests[-1].labels) == {"team": "red", "size": "2"}
