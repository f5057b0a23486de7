"""The catalog: versions and labels of flows by name.

- A name is a single key with all versions, changed only by compare-and-set: concurrent changes lose no version.
- A version is a flow id with a number; the newest version has the highest number. Storing a flow again adds no version
  and hides no newer one.
- A name has at most `VERSIONS_MAX` versions; beyond, the oldest version without a label goes.

Documents are stored under their ids, and stay when a name goes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.errors import Conflict, Invalid, NotFound
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Compare, Delete, KeyValue, Put, Txn, absent, keys, modified_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.store import Page, Store

VERSIONS_MAX = 1_000
LABELS_MAX = 100
NAME_CHARS_MAX = 256
TRIES_MAX = 20

LISTED_IN_ERRORS = 10
"""Versions and labels that an error lists."""


@dataclass(frozen=True, slots=True)
class AddedVersion:
    """The version of a stored flow."""

    version: int
    newest: int
    """Number of the newest version; higher if an older flow was stored again."""
    label_from: int
    """Number of the version that had the label before; 0 if none had it, or this version."""


class Catalog:
    """Reads and changes the names of flows."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add_version(self, name: str, flow_id: str, label: str = "") -> AddedVersion:
        """Add a flow to the versions of a name, unless it is one, and move the label to it.

        Raises: Invalid (FLOW_NAME_INVALID, LABEL_INVALID, TOO_MANY_LABELS), Conflict (FLOW_NAME_RACED).
        """
        _check("FLOW_NAME_INVALID", "the name of a flow", name)
        if label:
            _check("LABEL_INVALID", "a label", label)
            if label.isdecimal():
                raise Invalid("LABEL_INVALID", f"the label {label!r} would look like the number of a version")

        label_from = 0

        def change(existing: state_pb2.FlowName) -> state_pb2.FlowName | None:
            nonlocal label_from
            _check_new(existing, name, label)
            label_from = next((v.version for v in existing.versions if label in v.labels and v.flow_id != flow_id), 0)
            return _with_version(existing, flow_id, label)

        versions = _in_order(await self._change(name, change)).versions
        number = next(version.version for version in versions if version.flow_id == flow_id)
        return AddedVersion(number, versions[-1].version, label_from)

    async def resolve(self, name: str, label: str = "") -> str:
        """Return the flow id of the newest version, or of the version with this label, or else with this number.

        Raises: NotFound (FLOW_NAME_NOT_FOUND, LABEL_NOT_FOUND).
        """
        existing = await self.versions(name)
        if not label:
            return existing.versions[-1].flow_id
        for version in existing.versions:
            if label in version.labels:
                return version.flow_id
        for version in existing.versions:
            if label == str(version.version):
                return version.flow_id
        raise _no_label(name, label, existing)

    async def versions(self, name: str) -> state_pb2.FlowName:
        """Return all versions of a name, oldest first. Raises: NotFound `FLOW_NAME_NOT_FOUND`."""
        found = await self._store.get(keys.flow_name(name))
        if found is None:
            raise _no_name(name)
        return read_name(found.value)

    async def names_page(self, name_prefix: str, after: str, limit: int) -> Page:
        """Return a page of names behind the name `after`, with their versions."""
        return await self._store.range(
            keys.FLOW_NAMES + name_prefix, after=keys.flow_name(after) if after else "", limit=limit
        )

    async def delete(self, name: str, label: str = "") -> None:
        """Delete a name, or one label of a name. Raises: NotFound, Conflict."""
        if label:
            await self._change(name, lambda existing: _without_label(existing, name, label))
            return

        result = await self._store.txn(Txn((), (Delete(keys.flow_name(name)),)))
        if result.responses != (1,):
            raise _no_name(name)

    async def _change(
        self, name: str, change: Callable[[state_pb2.FlowName], state_pb2.FlowName | None]
    ) -> state_pb2.FlowName:
        """Compare-and-set the value of a name. `change` returns the new value, or None to keep the existing one."""
        key = keys.flow_name(name)
        for _ in range(TRIES_MAX):
            found = await self._store.get(key)
            existing = state_pb2.FlowName() if found is None else read_name(found.value)
            changed = change(existing)
            if changed is None:
                return existing

            txn = Txn((_unchanged(key, found),), (Put(key, changed.SerializeToString()),))
            if (await self._store.txn(txn)).succeeded:
                return changed
        raise Conflict("FLOW_NAME_RACED", f"flow name {name!r} changed during all {TRIES_MAX} tries; try again")


def read_name(stored: bytes) -> state_pb2.FlowName:
    """Return the versions of a name, oldest first."""
    return _in_order(state_pb2.FlowName.FromString(stored))


def _in_order(name: state_pb2.FlowName) -> state_pb2.FlowName:
    """Sort the versions by number: earlier control planes moved a flow that was stored again to the end."""
    versions: list[state_pb2.NamedVersion] = sorted(name.versions, key=lambda version: version.version)
    return state_pb2.FlowName(versions=versions)


def _unchanged(key: str, found: KeyValue | None) -> Compare:
    return absent(key) if found is None else modified_at(key, found.mod_revision)


def _with_version(existing: state_pb2.FlowName, flow_id: str, label: str) -> state_pb2.FlowName | None:
    """Return the name with the flow among its versions; None if no change is needed."""
    versions = list(existing.versions)
    known = next((version for version in versions if version.flow_id == flow_id), None)
    if known is not None and (not label or label in known.labels):
        return None

    if known is None:
        number = max((version.version for version in versions), default=0) + 1
        known = state_pb2.NamedVersion(flow_id=flow_id, version=number, stored_at_ms=time.time_ns() // 1_000_000)
        versions.append(known)

    if label:
        _move_label(versions, known, label)
    if len(versions) > VERSIONS_MAX:
        versions.remove(next((version for version in versions if not version.labels), versions[0]))
    return state_pb2.FlowName(versions=versions)


def _move_label(versions: list[state_pb2.NamedVersion], target: state_pb2.NamedVersion, label: str) -> None:
    for version in versions:
        if label in version.labels:
            version.labels.remove(label)
    if sum(len(version.labels) for version in versions) >= LABELS_MAX:
        raise Invalid("TOO_MANY_LABELS", f"a flow name has at most {LABELS_MAX} labels; delete one")
    target.labels.append(label)


def _without_label(existing: state_pb2.FlowName, name: str, label: str) -> state_pb2.FlowName:
    if not existing.versions:
        raise _no_name(name)
    for version in existing.versions:
        if label in version.labels:
            version.labels.remove(label)
            return existing
    raise _no_label(name, label, existing)


def _check(reason: str, what: str, text: str) -> None:
    if not text.strip() or len(text) > NAME_CHARS_MAX or any(ord(character) < 32 for character in text):
        raise Invalid(reason, f"{what} has 1 to {NAME_CHARS_MAX} printable characters, not {text[:80]!r}")


def _check_new(existing: state_pb2.FlowName, name: str, label: str) -> None:
    """Refuse a new name or label that `NAME@LABEL` cannot express. Raises: Invalid."""
    if "@" in name and not existing.versions:
        raise Invalid("FLOW_NAME_INVALID", f"the name of a flow has no @, which stands before a label: {name!r}")
    if "@" in label and not any(label in version.labels for version in existing.versions):
        raise Invalid("LABEL_INVALID", f"a label has no @, which stands before it: {label!r}")


def _no_name(name: str) -> NotFound:
    return NotFound("FLOW_NAME_NOT_FOUND", f"there is no flow named {name[:NAME_CHARS_MAX]!r}", name=name)


def _no_label(name: str, label: str, existing: state_pb2.FlowName) -> NotFound:
    labels = sorted(each for version in existing.versions for each in version.labels)
    numbers = [str(version.version) for version in existing.versions]
    return NotFound(
        "LABEL_NOT_FOUND",
        f"no version of the flow {name!r} has the label or the number {label[:NAME_CHARS_MAX]!r}; "
        f"its labels are {_listed(labels)}, its versions {_listed(numbers)}",
        name=name,
        label=label,
    )


def _listed(texts: list[str]) -> str:
    """Name the last texts of a list."""
    shown = ", ".join(texts[-LISTED_IN_ERRORS:]) or "none"
    return f"…, {shown}" if len(texts) > LISTED_IN_ERRORS else shown


__all__ = ["AddedVersion", "Catalog", "read_name"]
