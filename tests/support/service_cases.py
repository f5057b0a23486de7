"""The conformance cases against real services: etcd, control plane, executors and host as processes over gRPC."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

from support.conformance import RUN_TIMEOUT_S, FlowDocument, Ran, RanStep, read_flow
from support.etcd import etcd_binary

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from stepflow.client import Client
    from stepflow.dev.mesh import DevMesh

T = TypeVar("T")

START_TIMEOUT_S = 60.0


OF_VALUES = (2005, 2904)
"""Findings about variables without a value or a declaration, which some cases of the engine do without."""


class ServiceCases:
    """A mesh of two executors and one host, started as by `stepflow dev`. `loop` runs in another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._folder = Path(tempfile.mkdtemp(prefix="stepflow-cases-"))
        self._dev: DevMesh | None = None
        self._open_client: Client | None = None
        self._said: list[str] = []

    def start(self, config: Path, environ: Mapping[str, str]) -> None:
        with mock.patch.dict(os.environ, {**environ, "ETCD_BIN": str(etcd_binary().path)}):  # services inherit it
            self._await(self._start(config), START_TIMEOUT_S)

    def close(self) -> None:
        self._await(self._close(), START_TIMEOUT_S)
        shutil.rmtree(self._folder, ignore_errors=True)
        assert self._said == [], "a service has died, or did not end in time"

    def run(self, flow: FlowDocument, *inputs: Any, **options: Any) -> Ran:
        return self.run_batch(flow, inputs or (None,), **options)

    def run_batch(self, flow: FlowDocument, inputs: Sequence[Any], **options: Any) -> Ran:
        return self._await(self._run(flow, inputs, **options))

    def diagnose(self, flow: FlowDocument) -> list[tuple[int, str, str | None]]:
        found = self._await(self._client.validate_flow(_document(flow)))
        return [(one.code, one.level, one.path or None) for one in found]

    def store(self, flow: FlowDocument) -> str:
        return self._await(self._client.store_flow(_document(flow))).flow_id

    def stored(self, flow_id: str) -> Any:
        from stepflow.errors import NotFound

        try:
            return self._await(self._client.get_flow(flow_id))[1]
        except NotFound:
            return None

    @property
    def _client(self) -> Client:
        assert self._open_client is not None, "not started"
        return self._open_client

    def _await(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = RUN_TIMEOUT_S) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    async def _start(self, config: Path) -> None:
        from stepflow.client import Client
        from stepflow.dev.mesh import DevMesh
        from stepflow.dev.ports import free_port
        from stepflow.dev.services import DevSettings

        settings = DevSettings(folder=self._folder, config=config, port=free_port(), executors=2)
        self._dev = DevMesh(settings, self._said.append)
        await self._dev.start()
        self._open_client = Client(self._dev.server)
        for host in (await self._client.cluster()).hosts:
            assert [plugin.last_error for plugin in host.plugins if plugin.last_error] == []

    async def _close(self) -> None:
        if self._open_client is not None:
            await self._open_client.close()
        if self._dev is not None:
            await self._dev.stop()

    async def _run(
        self,
        flow: FlowDocument,
        inputs: Sequence[Any],
        variables: Mapping[str, Any] | None = None,
        overrides: Any = None,
        window: int | None = None,
    ) -> Ran:
        client = self._client
        is_id = isinstance(flow, str) and not flow.endswith(".yaml")
        submitted = str(flow) if is_id else _document(flow)
        # The cases are about the engine: many of their flows are to fail.
        run_id = await client.submit_batch(
            submitted, inputs, variables=variables, overrides=overrides, concurrency_max=window, check=False
        )
        run = await client.wait(run_id, timeout_s=RUN_TIMEOUT_S / 2)
        if run.status == "completed":
            found = await client.validate_flow(submitted, variables=variables or {}, overrides=overrides)
            alarms = [one.message for one in found if one.level != "warning" and one.code not in OF_VALUES]
            assert alarms == [], "the check of the mesh refuses a flow that works"
        items = [item async for item in client.items(run_id)]
        shown = [_tree(item.raw, item.failure) for item in items]
        assert run.ended, f"the run has not ended in time: {shown}"
        steps = [
            RanStep(step.step_id, step.item, step.depth, step.status, step.attempt, _tree(step.raw, step.failure))
            async for step in client.steps(run_id, include_results=True)
        ]
        return Ran(run_id, run.status, shown, [item.status for item in items], steps)


def _tree(raw: bytes, failure: Any) -> Any:
    from stepflow.codec import Json, decode
    from stepflow.run.entries import flow_result

    outcome = Json(raw) if raw else failure
    return None if outcome is None else decode(flow_result(outcome))


def _document(flow: FlowDocument) -> bytes:
    from stepflow.flow import flow_bytes

    return flow_bytes(read_flow(flow))
