"""The host's entry in the store: its session, and the rules of its configuration.

- The session hangs on a lease. It says what the host offers, and is written anew whenever that changes; when the lease
  is lost, the host registers again, under the same id: its calls were given up by then, it is here all the same.
- `routes/<prefix>` outlives the host. The newest rules win when no live session claims others for that prefix; else the
  registration is refused, naming both hosts, unless it is told to replace them.
- The host begins no call while its lease does not count as held, and hears when its session has ended.
- Every write compares what was read before, so two hosts with different rules cannot both be accepted.

Does not know calls.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from stepflow.codec import encode
from stepflow.errors import Conflict, Refused, StepflowError
from stepflow.mesh.v1 import state_pb2
from stepflow.routing.stored import encode_rules
from stepflow.store import Compare, Op, Put, Txn, absent, created_at, keys, modified_at, range_all
from stepflow.store.lease import LeaseKeeper
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from component_host.backend import ComponentInfo, Health, Listing
    from component_host.host import ComponentHost
    from stepflow.config import Config
    from stepflow.store import KeyValue, Store

log = get_logger(__name__)

RETRY_S_MIN = 0.5
RETRY_S_MAX = 5.0
"""Between two tries to register again, doubling."""

TRIES_MAX = 10
"""For a registration that others' registrations keep overtaking."""

PREFIXES_MAX = 100
"""Route prefixes of one configuration: all of them are compared in one transaction."""

SESSION_BYTES_MAX = 512 * 1024
"""Above it the schemas are left out of the listing; executors do without them."""


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
    ) -> None:
        self._store = store
        self._host = host
        self._config = config
        self._address = address
        self._capacity = capacity
        self._replace_routes = replace_routes
        self._draining = False
        self._types = {name: plugin.type for name, plugin in config.plugins.items()}
        self._routes = {prefix: encode_rules(rules, self._types) for prefix, rules in config.routes.items()}
        self._key = keys.session_host(host.id)
        self._keeper: LeaseKeeper | None = None
        self._created = 0
        """Create revision of our session; 0 = not registered."""
        self._written = b""
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register. Raises: Refused ROUTES_CLAIMED, TOO_MANY_ROUTES; Unavailable."""
        if len(self._routes) > PREFIXES_MAX:
            raise Refused(
                "TOO_MANY_ROUTES",
                f"{len(self._routes)} routes in one configuration; the limit is {PREFIXES_MAX}: start two hosts",
            )
        await self._register()
        self._host.may_begin = self._valid
        self._task = asyncio.create_task(self._keep(), name="host registration")

    def changed(self) -> None:
        """What the host offers has changed: write it. Safe to call at any time, also before `start`."""
        self._work.set()

    def drain(self) -> None:
        """Ask the executors for no new calls."""
        self._draining = True
        self._work.set()

    async def close(self) -> None:
        """Deregister. Safe to repeat."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            await keeper.stop(revoke=True)

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        pause_s = RETRY_S_MIN
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                if not self._created:
                    await self._register()
                await self._update()
                pause_s = RETRY_S_MIN
                continue
            except StepflowError as error:
                log.warning("registration failed, trying again", reason=error.reason, error=error.message)
            except Exception:  # a defect: without this the host would be registered no more, and never say so
                log.exception("registration failed by a defect", host_id=self._host.id)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_S_MAX)
            self._work.set()

    def _lost(self) -> None:
        log.warning("lease lost, registering again", host_id=self._host.id)
        self._created = 0
        self._host.lost()
        self._work.set()

    def _valid(self) -> bool:
        return bool(self._created) and self._keeper is not None and self._keeper.valid()

    async def _register(self) -> None:
        if self._keeper is not None:
            await self._keeper.stop(revoke=True)
        keeper = self._keeper = LeaseKeeper(self._store, self._lost)
        lease = await keeper.start()
        for _ in range(TRIES_MAX):
            compares, writes = await self._claims()
            session = self._session()
            txn = Txn((absent(self._key), *compares), (Put(self._key, session, lease), *writes))
            result = await self._store.txn(txn)
            if result.succeeded:
                self._created, self._written = result.revision, session
                log.info("host registered", host_id=self._host.id, address=self._address)
                return
            if await self._is_ours(lease, session):
                return
        raise Conflict("REGISTRATION_RACED", "other hosts register at the same time, again and again; try again")

    async def _is_ours(self, lease: int, session: bytes) -> bool:
        """Say whether a registration whose reply was lost has succeeded. Nobody else has our lease."""
        standing = await self._store.get(self._key)
        if standing is None or standing.lease != lease:
            return False
        self._created, self._written = standing.create_revision, session
        return True

    async def _update(self) -> None:
        """Write the session as it is now, unless that is what stands there."""
        session = self._session()
        if session == self._written or self._keeper is None:
            return
        put = Put(self._key, session, ignore_lease=True)
        result = await self._store.txn(Txn((created_at(self._key, self._created),), (put,)))
        if not result.succeeded:
            self._lost()
            return
        self._written = session

    # --- routes -----------------------------------------------------------------------------------------------------

    async def _claims(self) -> tuple[list[Compare], list[Op]]:
        """Return what makes our rules those of the mesh, if nobody objects. Raises: Refused ROUTES_CLAIMED."""
        standing = {keys.tail(keys.ROUTES, item.key): item async for item in range_all(self._store, keys.ROUTES)}
        compares: list[Compare] = []
        writes: list[Op] = []
        wanted: dict[str, str] = {}
        for prefix, (text, digest) in self._routes.items():
            key, item = keys.route(prefix), standing.get(prefix)
            compares.append(modified_at(key, item.mod_revision) if item is not None else absent(key))
            # Also where nothing changes: a host with other rules that has looked before us must fail its compare.
            writes.append(Put(key, text))
            if item is None or item.value != text:
                wanted[prefix] = digest
        if wanted and not self._replace_routes:
            async for item in range_all(self._store, keys.HOST_SESSIONS):
                self._check_claims(item, wanted)
        return compares, writes

    def _check_claims(self, item: KeyValue, wanted: Mapping[str, str]) -> None:
        other = keys.tail(keys.HOST_SESSIONS, item.key)
        claimed = state_pb2.HostSession.FromString(item.value).route_hashes
        for prefix, digest in wanted.items():
            if other != self._host.id and claimed.get(prefix, digest) != digest:
                raise Refused(
                    "ROUTES_CLAIMED",
                    f"host {self._host.id} has other rules for `{prefix}` than host {other}, which is live; give both "
                    f"the same configuration, stop {other} first, or start this one with --replace-routes",
                    prefix=prefix,
                    host_id=self._host.id,
                    claimed_by=other,
                )

    # --- what stands in the session ---------------------------------------------------------------------------------

    def _session(self) -> bytes:
        host = self._host
        session = state_pb2.HostSession(
            address=self._address,
            capacity=self._capacity,
            draining=self._draining,
            rules_hash=hashlib.sha256("".join(digest for _, digest in self._routes.values()).encode()).hexdigest(),
            route_hashes={prefix: digest for prefix, (_, digest) in self._routes.items()},
        )
        listings = host.listings()
        for name in host.backends:
            plugin = _plugin(name, self._types[name], listings.get(name), host.failures.get(name))
            _add_health(plugin, host.backends[name].health)
            session.plugins.append(plugin)
        if session.ByteSize() > SESSION_BYTES_MAX:
            log.warning("listing too large, schemas are left out", host_id=host.id, size=session.ByteSize())
            for plugin in session.plugins:
                for component in plugin.components:
                    component.ClearField("input_schema_json")
                    component.ClearField("output_schema_json")
        return session.SerializeToString(deterministic=True)


def _plugin(name: str, kind: str, listing: Listing | None, error: StepflowError | None) -> state_pb2.PluginListing:
    plugin = state_pb2.PluginListing(plugin=name, type=kind, state=state_pb2.PluginListing.STATE_STARTING)
    if error is not None:
        plugin.state = state_pb2.PluginListing.STATE_FAILED
        plugin.last_error = error.message
    elif listing is not None:
        plugin.state = state_pb2.PluginListing.STATE_READY
        plugin.complete = listing.complete
        plugin.components.extend(_component(info) for info in listing.components)
    return plugin


def _add_health(plugin: state_pb2.PluginListing, health: Health) -> None:
    plugin.restarts = health.restarts
    if plugin.state == state_pb2.PluginListing.STATE_READY:
        plugin.last_error = health.last_error
        if not health.serving:
            plugin.state = state_pb2.PluginListing.STATE_RESTARTING


def _component(info: ComponentInfo) -> state_pb2.ComponentListing:
    return state_pb2.ComponentListing(
        component=info.component,
        path=info.path,
        description=info.description or "",
        input_schema_json=b"" if info.input_schema is None else encode(info.input_schema),
        output_schema_json=b"" if info.output_schema is None else encode(info.output_schema),
    )


__all__ = ["Registration"]
