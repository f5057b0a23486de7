"""Claims on route prefixes: hosts with different rules for one prefix are never both accepted.

- The newest rules of a prefix win, unless a live session claims other rules for it. Sessions of one pool may differ
  where hosts replace routes.
- `read` returns what to compare and what to write; the caller adds its session, in one transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from stepflow.errors import FailedPrecondition
from stepflow.mesh.v1 import state_pb2
from stepflow.routing.stored import encode_rules
from stepflow.store import TXN_OPS_MAX, Compare, Delete, Op, Put, absent, keys, modified_at, range_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepflow.config import Config
    from stepflow.store import Store

EncodedRules: TypeAlias = tuple[bytes, str]
"""The rules of a prefix as stored, and their digest."""

PREFIXES_MAX = 100
"""Route prefixes of one configuration: one transaction compares all of them."""

DELETED_MAX = 20
"""Prefixes deleted by one transaction. Others stay in the store, and lead to plugins that no host has."""

assert PREFIXES_MAX + DELETED_MAX < TXN_OPS_MAX  # with the session


def encoded_routes(config: Config) -> dict[str, EncodedRules]:
    """Return the rules of a configuration as stored, by prefix."""
    types = {name: plugin.type for name, plugin in config.plugins.items()}
    return {prefix: encode_rules(rules, types) for prefix, rules in config.routes.items()}


class RouteClaims:
    """The claims of one host."""

    def __init__(self, store: Store, host_id: str, *, exempt_pool: str | None) -> None:
        """`exempt_pool`: hosts of this pool may have other rules; None: no host may."""
        self._store = store
        self._host_id = host_id
        self._exempt_pool = exempt_pool

    async def read(
        self, routes: Mapping[str, EncodedRules], former: Mapping[str, EncodedRules] | None = None
    ) -> tuple[list[Compare], list[Op]]:
        """Return the compares and writes that store rules in place of this host's former ones.

        Raises: FailedPrecondition ROUTES_CLAIMED, TOO_MANY_ROUTES; Unavailable.
        """
        if len(routes) > PREFIXES_MAX:
            raise FailedPrecondition(
                "TOO_MANY_ROUTES",
                f"{len(routes)} routes in one configuration; the limit is {PREFIXES_MAX}: start two hosts",
            )

        # 1. Read what is stored.
        existing = {keys.tail(keys.ROUTES, item.key): item async for item in range_all(self._store, keys.ROUTES)}
        gone = [prefix for prefix in former or () if prefix not in routes and prefix in existing]
        changes = {
            prefix: digest
            for prefix, (text, digest) in routes.items()
            if prefix not in existing or existing[prefix].value != text
        }
        others = await self._other_sessions() if changes or gone else {}
        for host_id, session in others.items():
            self._check(host_id, session, changes)

        # 2. Write all rules. Also unchanged ones: otherwise a host with other rules that read before this write passes
        #    its compare.
        compares: list[Compare] = []
        writes: list[Op] = []
        for prefix, (text, _) in routes.items():
            key, item = keys.route(prefix), existing.get(prefix)
            compares.append(modified_at(key, item.mod_revision) if item is not None else absent(key))
            writes.append(Put(key, text))

        # 3. Delete the prefixes that no live host claims any more.
        for prefix in gone[:DELETED_MAX]:
            if not any(prefix in session.route_hashes for session in others.values()):
                key = keys.route(prefix)
                compares.append(modified_at(key, existing[prefix].mod_revision))
                writes.append(Delete(key))
        return compares, writes

    async def _other_sessions(self) -> dict[str, state_pb2.HostSession]:
        return {
            host_id: state_pb2.HostSession.FromString(item.value)
            async for item in range_all(self._store, keys.HOST_SESSIONS)
            if (host_id := keys.tail(keys.HOST_SESSIONS, item.key)) != self._host_id
        }

    def _check(self, other: str, session: state_pb2.HostSession, changes: Mapping[str, str]) -> None:
        """Raises: FailedPrecondition ROUTES_CLAIMED, a host of no exempt pool has different rules for a prefix."""
        if session.pool == self._exempt_pool:
            return

        for prefix, digest in changes.items():
            if session.route_hashes.get(prefix, digest) != digest:
                raise FailedPrecondition(
                    "ROUTES_CLAIMED",
                    f"host {self._host_id} has other rules for `{prefix}` than host {other}, which is live; give both "
                    f"the same configuration, stop {other} first, or start this one with --replace-routes, which acts "
                    "within a pool",
                    prefix=prefix,
                    host_id=self._host_id,
                    claimed_by=other,
                )


__all__ = ["EncodedRules", "RouteClaims", "encoded_routes"]
