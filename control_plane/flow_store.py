"""Flows by id: stored once, validated once per process, and cached for submissions by id.

A flow's id is the SHA-256 of its normalised document, so a stored flow never changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.codec import blob_id, decode
from stepflow.errors import Invalid, NotFound
from stepflow.flow import flow_bytes, flow_from_tree, validate_flow
from stepflow.store import Put, Txn, absent, keys

if TYPE_CHECKING:
    from stepflow.flow import Flow
    from stepflow.store import Store

FLOWS_KEPT_MAX = 256
"""Parsed flows in memory, first in, first out."""


class FlowStore:
    """Stores and reads flows; validates each id once per process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._checked: dict[str, Flow] = {}
        """Valid flows by id, a FIFO cache."""

    async def put(self, flow: Flow) -> str:
        """Store a flow and return its id. Idempotent. Raises: Invalid, fatal diagnostics."""
        flow_id, document = self.prepare(flow)
        await self.put_document(flow_id, document)
        return flow_id

    def prepare(self, flow: Flow) -> tuple[str, bytes]:
        """Return id and normalised document of a flow, for `put_document`. Raises: Invalid, fatal diagnostics."""
        document = flow_bytes(flow)
        flow_id = blob_id(document)
        if flow_id not in self._checked:
            check_flow(flow)
            self._keep(flow_id, flow)
        return flow_id, document

    async def put_document(self, flow_id: str, document: bytes) -> None:
        """Store a prepared flow. Idempotent."""
        key = keys.flow(flow_id)
        await self._store.txn(Txn((absent(key),), (Put(key, document),)))

    async def document(self, flow_id: str) -> bytes:
        """Return the normalised document. Raises: NotFound."""
        found = await self._store.get(keys.flow(flow_id))
        if found is None:
            raise NotFound("FLOW_NOT_FOUND", f"there is no flow {flow_id}", flow_id=flow_id)
        return found.value

    async def get(self, flow_id: str) -> Flow:
        """Return a stored flow. Raises: NotFound."""
        flow = self._checked.get(flow_id)
        if flow is None:
            flow = flow_from_tree(decode(await self.document(flow_id)))
            self._keep(flow_id, flow)
        return flow

    def _keep(self, flow_id: str, flow: Flow) -> None:
        if len(self._checked) >= FLOWS_KEPT_MAX:
            self._checked.pop(next(iter(self._checked)))
        self._checked[flow_id] = flow


def check_flow(flow: Flow) -> None:
    """Refuse a flow with fatal diagnostics. Raises: Invalid."""
    diagnostics = validate_flow(flow)
    if diagnostics.num_fatal:
        first = next(diagnostic for diagnostic in diagnostics if diagnostic.level == "fatal")
        problem = f"the flow cannot run: {first.formatted}, at {first.path}"
        raise Invalid("FLOW_INVALID", problem, diagnostics=diagnostics.to_tree())


__all__ = ["FlowStore", "check_flow"]
