"""An incarnation of an executor: its id, its lease, its fenced writer.

- Every incarnation has a fresh id: a former incarnation is never mistaken for the current.
- The lease is renewed by the session's `stepflow.store.lease.LeaseKeeper`.
- However the session ends (the lease expires, the leader deletes the key, the writer is fenced, an older copy of the
  store knows less than was written), `on_lost` is called once. Nothing is called after `close`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias
from uuid import uuid4

from stepflow.errors import StepflowError
from stepflow.store import keys
from stepflow.store.follow import follow
from stepflow.store.lease import LeaseKeeper
from stepflow.store.writer import FencedWriter
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.mesh.v1 import state_pb2
    from stepflow.store import Compare, Delete, KeyValue, Put, Store, StoreEvent

log = get_logger(__name__)


def fresh_id(name: str) -> str:
    """Return a new, unique id for an incarnation."""
    return f"{name}-{uuid4().hex[:12]}"


class Session:
    """A registered executor. Made by `open`, ended by `close`."""

    def __init__(self, executor_id: str, keeper: LeaseKeeper, on_lost: Callable[[Session], None]) -> None:
        self.id = executor_id
        self.valid = keeper.valid
        """Returns True while the lease counts as held by the executor's own clock."""
        self._keeper = keeper
        self._on_lost: Callable[[Session], None] | None = on_lost
        self._writer: FencedWriter | None = None
        self._check: asyncio.Task[None] | None = None
        self.watcher: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        store: Store,
        executor_id: str,
        value: state_pb2.ExecutorSession,
        *,
        ttl_s: float,
        on_lost: Callable[[Session], None],
    ) -> Session:
        """Register under an id of `fresh_id`. Raises: StepflowError."""
        session: Session | None = None

        def lost() -> None:
            if session is not None:
                session._lost()

        # 1. Take the lease and register; a failure leaves no session behind.
        keeper = LeaseKeeper(store, lost, ttl_s=ttl_s)
        try:
            lease = await keeper.start()
            session = cls(executor_id, keeper, on_lost)
            session._writer = await FencedWriter.register(
                store, executor_id, value.SerializeToString(), lease, clock_valid=keeper.valid, on_lost=lost
            )
        except BaseException:
            await keeper.stop(revoke=True)
            raise

        # 2. Watch the own key: the leader deletes the session of an executor that it takes for dead.
        own = keys.session_executor(executor_id)
        session.watcher = asyncio.create_task(
            follow(store, own, listed=session._listed, changed=session._changed), name=f"watch {own}"
        )
        return session

    @property
    def writer(self) -> FencedWriter:
        assert self._writer is not None
        return self._writer

    async def write(self, ops: Sequence[Put | Delete], compares: tuple[Compare, ...] = ()) -> None:
        """Write operations with the next flush, and return once they are durable.

        Raises: StepflowError, see `FencedWriter.submit`.
        """
        decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def committed() -> None:
            if not decided.done():
                decided.set_result(None)

        def rejected(error: StepflowError) -> None:
            if not decided.done():
                decided.set_exception(error)

        self.writer.submit(tuple(ops), compares=compares, on_commit=committed, on_reject=rejected)
        await decided

    async def close(self, *, revoke: bool) -> None:
        """End the session: with `revoke` at once, else when its lease expires."""
        self._on_lost = None
        if self._check is not None:
            self._check.cancel()
            await asyncio.gather(self._check, return_exceptions=True)
        if self.watcher is not None:
            self.watcher.cancel()
            await asyncio.gather(self.watcher, return_exceptions=True)
        await self.writer.close()
        await self._keeper.stop(revoke=revoke)

    def _listed(self, items: list[KeyValue]) -> None:
        """Check the session after a gap in the watch, and as often as the watch is renewed."""
        if not items:
            self._lost()
        elif self._writer is not None:
            self._check = asyncio.create_task(self._check_writer(self._writer), name="check the session")

    async def _check_writer(self, writer: FencedWriter) -> None:
        try:
            await writer.check()
        except StepflowError as error:
            log.info("session not checked", executor_id=self.id, reason=error.reason)

    def _changed(self, events: Sequence[StoreEvent]) -> None:
        if any(event.kind == "delete" for event in events):
            self._lost()

    def _lost(self) -> None:
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(self)


CurrentSession: TypeAlias = Callable[[], Session | None]
"""Returns the session of the running incarnation; None while the executor is not registered."""

__all__ = ["CurrentSession", "Session", "fresh_id"]
