"""A store whose revisions begin at 1, over a store with earlier writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from stepflow.store import (
    PAGE_KEYS_MAX,
    Compare,
    KeyValue,
    Page,
    Response,
    Store,
    StoreWatch,
    Txn,
    TxnResult,
    WatchBatch,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Shifted:
    """Delegates to `store`: subtracts `base` from every revision it returns, and adds it to those it is given.

    Revision 0 means "now", "never" or "absent" and stays 0.
    """

    def __init__(self, store: Store, base: int) -> None:
        self._store = store
        self._base = base

    async def get(self, key: str) -> KeyValue | None:
        found = await self._store.get(key)
        return None if found is None else self._key_value(found)

    async def range(self, prefix: str, *, after: str = "", limit: int = PAGE_KEYS_MAX, revision: int = 0) -> Page:
        page = await self._store.range(prefix, after=after, limit=limit, revision=self._up(revision))
        return self._page(page)

    async def txn(self, txn: Txn) -> TxnResult:
        txn = replace(txn, compares=tuple(self._compare(compare) for compare in txn.compares))
        result = await self._store.txn(txn)
        responses = tuple(self._response(response) for response in result.responses)
        return TxnResult(result.succeeded, self._down(result.revision), responses)

    async def lease_grant(self, ttl_s: float) -> int:
        return await self._store.lease_grant(ttl_s)

    async def lease_keep_alive(self, lease: int) -> float:
        return await self._store.lease_keep_alive(lease)

    async def lease_revoke(self, lease: int) -> None:
        await self._store.lease_revoke(lease)

    def watch(self, prefix: str, *, from_revision: int = 0) -> StoreWatch:
        return _ShiftedWatch(self, self._store.watch(prefix, from_revision=self._up(from_revision)))

    async def revision(self) -> int:
        return self._down(await self._store.revision())

    async def compact(self, revision: int) -> None:
        await self._store.compact(self._up(revision))

    async def close(self) -> None:
        await self._store.close()

    def batch(self, batch: WatchBatch) -> WatchBatch:
        events = tuple(replace(event, kv=self._key_value(event.kv)) for event in batch.events)
        return WatchBatch(self._down(batch.revision), events)

    def _up(self, revision: int) -> int:
        return revision and revision + self._base

    def _down(self, revision: int) -> int:
        return revision and revision - self._base

    def _compare(self, compare: Compare) -> Compare:
        if compare.target in ("create_revision", "mod_revision") and isinstance(compare.operand, int):
            return replace(compare, operand=self._up(compare.operand))
        return compare

    def _response(self, response: Response) -> Response:
        match response:
            case KeyValue():
                return self._key_value(response)
            case Page():
                return self._page(response)
            case _:
                return response

    def _page(self, page: Page) -> Page:
        return Page([self._key_value(item) for item in page.items], page.more, self._down(page.revision))

    def _key_value(self, kv: KeyValue) -> KeyValue:
        return replace(kv, create_revision=self._down(kv.create_revision), mod_revision=self._down(kv.mod_revision))


class _ShiftedWatch:
    def __init__(self, store: Shifted, watch: StoreWatch) -> None:
        self._store = store
        self._watch = watch

    def __aiter__(self) -> AsyncIterator[WatchBatch]:
        return self

    async def __anext__(self) -> WatchBatch:
        return self._store.batch(await self._watch.__anext__())

    def close(self) -> None:
        self._watch.close()
