"""The host's entry in the store: its session, and the routing rules of its configuration.

- The session is bound to a lease. The session lists the host's components and is rewritten after each change. After
  the loss of the lease, or of the session alone, the host registers again under the same id, without the former calls.
- `routes/<prefix>` outlives the host. The newest rules win, unless a live session claims other rules for the prefix:
  then the registration is refused, naming both hosts, except with `replace_routes` within a pool.
- A configuration read again replaces the rules and the session in one transaction; prefixes that no live host claims
  any more are deleted.
- Plugins whose name another pool owns for another server are listed as conflicts (`plugin_claims`).
- The host begins no call while its lease does not count as held, and drops its calls when its session has ended.
- Every write compares the revisions read before, so two hosts with different rules cannot both be accepted
  (`route_claims`).

Calls are unknown here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from component_host.disputes import owners_in
from component_host.plugin_claims import PluginClaims, server_digests
from component_host.route_claims import RouteClaims, encoded_routes
from component_host.session_message import SessionContent
from component_host.session_watch import SessionWatch
from stepflow.errors import Conflict, StepflowError
from stepflow.retry import doubling
from stepflow.store import Put, Txn, absent, created_at, keys
from stepflow.store.lease import LeaseKeeper
from stepflow.telemetry import get_logger
from stepflow.value_budget import Reports
from stepflow.vital import Vitals, ended

if TYPE_CHECKING:
    from component_host.host import ComponentHost
    from stepflow.config import Config
    from stepflow.store import Store

log = get_logger(__name__)

RETRY_S_MIN = 0.5
RETRY_S_MAX = 5.0
"""Pauses between tries to register again, doubling."""

TRIES_MAX = 10
"""Tries of one registration while registrations of other hosts invalidate its compares."""


class Registration:
    """Keeps the host registered from `start` until `close`."""

    def __init__(
        self,
        store: Store,
        host: ComponentHost,
        config: Config,
        *,
        address: str,
        capacity: int,
        replace_routes: bool = False,
        pool: str = "",
    ) -> None:
        self._store = store
        self._host = host
        self._address = address
        self._route_claims = RouteClaims(store, host.id, exempt_pool=pool if replace_routes else None)
        self._plugin_claims = PluginClaims(store, host.id, pool, config)
        self._claims_due = False
        """The claims are not settled since the last registration."""
        self._draining = False

        self._content = SessionContent(host, config, self._plugin_claims, address, capacity, pool)
        self._key = keys.session_host(host.id)
        self._keeper: LeaseKeeper | None = None
        self._created = 0
        """Create revision of the session; 0 = not registered."""
        self._written = b""
        """Session as last written."""

        self._reports = Reports(self.changed)
        self._work = asyncio.Event()
        self._writing = asyncio.Lock()
        """Held during a registration, and during a change of the routes."""
        self._watch = SessionWatch(store, self._key, lambda: self._written, self._work.set)
        self._task: asyncio.Task[None] | None = None
        self._bound: asyncio.Task[None] | None = None
        """Follows the bound of inline values."""

    async def start(self) -> None:
        """Register. Raises: FailedPrecondition ROUTES_CLAIMED, TOO_MANY_ROUTES; Unavailable."""
        await self._register()
        await self._update()
        self._host.dispatcher.may_begin = self._valid
        self._host.value_budget.changed = self._host.output_turns.changed = self._reports.changed
        self._host.disputes.is_owner = owners_in(self._store)
        self._task = asyncio.create_task(self._keep(), name="host registration")
        self._watch.start()
        self._bound = asyncio.create_task(self._host.inline_bound.follow(self._store), name="watch pressure")

    def changed(self) -> None:
        """Rewrite the session if the host's state has changed. Idempotent; allowed before `start`."""
        self._work.set()

    def set_draining(self, draining: bool) -> None:
        """Ask the executors for no new calls, or for calls again."""
        self._draining = draining
        self._work.set()

    async def prepare_config(self, config: Config) -> None:
        """Check the routes of a new configuration, and list its plugins from now on with the former ones.

        Raises: FailedPrecondition ROUTES_CLAIMED, TOO_MANY_ROUTES; Unavailable.
        """
        await self._route_claims.read(encoded_routes(config))
        self._content.add_types(config)
        self._plugin_claims.digests = server_digests(config)
        self._claims_due = True

    async def apply_routes(self, config: Config) -> None:
        """Replace the routes of this host, in the store and in the session.

        Raises: as `prepare_config`, and Conflict REGISTRATION_RACED; the former routes are in force then.
        """
        async with self._writing:
            former, self._content.routes = self._content.routes, encoded_routes(config)
            try:
                for _ in range(TRIES_MAX):
                    if not self._created:  # the next registration writes them
                        return

                    compares, writes = await self._route_claims.read(self._content.routes, former)
                    session = self._content.encode(draining=self._draining)
                    write = Put(self._key, session, ignore_lease=True)
                    txn = Txn((created_at(self._key, self._created), *compares), (write, *writes))
                    if (await self._store.txn(txn)).succeeded:
                        self._written = session
                        return
                    await self._check()

                raise _raced()
            except BaseException:
                self._content.routes = former
                raise

    async def close(self) -> None:
        """Deregister. Idempotent."""
        self._reports.close()
        await self._watch.close()
        tasks = [task for task in (self._task, self._bound) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            await keeper.stop(revoke=True)

    async def _keep(self) -> None:
        """Register again or update the session, whenever there is work; retry until success."""
        pauses = doubling(RETRY_S_MIN, RETRY_S_MAX)

        while True:
            await self._work.wait()
            self._work.clear()

            try:
                async with self._writing:
                    if self._watch.doubtful:
                        await self._check()
                    if not self._created:
                        await self._register()
                    await self._update()
                pauses = doubling(RETRY_S_MIN, RETRY_S_MAX)
                continue
            except StepflowError as error:
                log.warning("registration failed, trying again", reason=error.reason, error=error.message)
            except Exception:  # without this, a defect would end all further registrations silently
                log.exception("registration failed by a defect", host_id=self._host.id)

            await asyncio.sleep(next(pauses))
            self._work.set()

    async def _check(self) -> None:
        """Find out if the store has the session as it was written. An operator or an older copy may say otherwise."""
        self._watch.doubtful = False
        existing = await self._store.get(self._key)
        if not self._created:
            return
        if existing is None or existing.create_revision != self._created:
            self._lost()
        elif existing.value != self._written:
            self._written = b""

    def _lost(self) -> None:
        log.warning("session lost, registering again", host_id=self._host.id)
        self._created = 0
        self._work.set()  # first: a defect below must not keep this host out of the cluster
        self._host.end_session()

    def vitals(self) -> Vitals:
        """Return True if this host can take calls."""
        return Vitals("" if self._valid() else "no valid session in the store", ended(self._task, self._bound))

    def _valid(self) -> bool:
        return bool(self._created) and self._keeper is not None and self._keeper.valid()

    async def _register(self) -> None:
        self._claims_due = True

        # 1. Get a new lease.
        if self._keeper is not None:
            await self._keeper.stop(revoke=True)
        keeper = self._keeper = LeaseKeeper(self._store, self._lost)
        lease = await keeper.start()

        for _ in range(TRIES_MAX):
            # 2. Read the routes, and check that no live host claims other rules.
            compares, writes = await self._route_claims.read(self._content.routes)

            # 3. Write session and routes, if nothing has changed since.
            session = self._content.encode(draining=self._draining)
            txn = Txn((absent(self._key), *compares), (Put(self._key, session, lease), *writes))
            result = await self._store.txn(txn)
            if result.succeeded:
                self._created, self._written = result.revision, session
                log.info("host registered", host_id=self._host.id, address=self._address)
                return

            # 4. A retried transaction fails if its first try succeeded and only the reply was lost.
            if await self._is_registered(lease, session):
                return

        raise _raced()

    async def _is_registered(self, lease: int, session: bytes) -> bool:
        """Return True if the stored session has this host's lease."""
        existing = await self._store.get(self._key)
        if existing is None or existing.lease != lease:
            return False

        self._created, self._written = existing.create_revision, session
        return True

    async def _update(self) -> None:
        """Settle the claims of a new session; write the session, unless it is unchanged."""
        if self._claims_due:
            await self._plugin_claims.settle()
            self._claims_due = False

        session = self._content.encode(draining=self._draining)
        if session == self._written or self._keeper is None:
            return

        put = Put(self._key, session, ignore_lease=True)
        result = await self._store.txn(Txn((created_at(self._key, self._created),), (put,)))
        if not result.succeeded:
            self._lost()
            return
        self._written = session


def _raced() -> Conflict:
    return Conflict("REGISTRATION_RACED", "registrations of other hosts interfere again and again; try again")


__all__ = ["Registration"]
