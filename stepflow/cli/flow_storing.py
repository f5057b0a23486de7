"""The flows of `stepflow flows store`: checked, then stored one after another; or what that would change."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.cli.console import CheckFailed
from stepflow.cli.found_flow import check_stdin, find_flow
from stepflow.errors import Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from stepflow.cli.found_flow import FoundFlow
    from stepflow.client import Client, FlowVersion

NEW, NEW_VERSION, UNCHANGED = "new", "new version", "unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """A flow in the mesh: stored now, or as it would be."""

    flow: str
    """FLOW as it was given."""
    flow_id: str
    name: str | None
    version: int | None
    newest_version: int | None
    label: str | None
    label_from: int | None
    change: str
    """`new`, `new version` or `unchanged`."""

    def to_tree(self) -> dict[str, Any]:
        """Return the members for a list; a single flow is shown without `flow`."""
        return asdict(self)

    def __str__(self) -> str:
        """The version in words: `greet, version 3, live (new version)`."""
        parts = [f"{self.name}, version {self.version}" if self.name else f"no name, id {self.flow_id[:12]}"]
        parts += [self.label] if self.label else []
        return f"{', '.join(parts)} ({self.change})"

    def warnings(self) -> list[str]:
        """Return what a person may not expect."""
        found = []
        if self.label_from:
            now = f"is now on version {self.version}"
            found.append(f"the tag {self.label} was on version {self.label_from} and {now}")
        if (self.newest_version or 0) > (self.version or 0):
            found.append(
                f"this flow was stored before: version {self.newest_version} remains the newest; "
                f"name this one as {self.name}@{self.version}"
            )
        return found


def read_checked(texts: Sequence[str], server: str, tag: str) -> list[FoundFlow]:
    """Return the flows that the texts name, if all of them can be stored. The reports of the others are printed.

    Raises: Usage, NotFound, Unavailable; Invalid: `FLOW_INVALID`, `LABEL_INVALID`.
    """
    check_stdin(*texts)
    flows: list[FoundFlow] = []
    for text in texts:
        try:
            found = find_flow(text, server)
            _check(found, tag, several=len(texts) > 1)
        except Invalid as error:
            if len(texts) == 1 or isinstance(error, console.Usage):
                raise
            console.error(error)
        else:
            flows.append(found)

    if len(flows) < len(texts):
        count = len(texts) - len(flows)
        raise CheckFailed("FLOW_INVALID", f"nothing was stored: {count} of {len(texts)} flows cannot be stored")
    return flows


def _check(found: FoundFlow, tag: str, *, several: bool) -> None:
    """Check that a flow can be stored. Raises: Invalid."""
    from stepflow.cli.findings import check_flow
    from stepflow.flow import validate_flow

    if several and (found.flow.warnings or any(item.level != "warning" for item in validate_flow(found.flow))):
        console.say(console.styled(f"=== {found.text} ===", "bold"))
    check_flow(found.flow)
    if tag and not found.flow.name:
        text = "a tag marks a version of a named flow; give the flow a name, or leave out --tag"
        raise Invalid("LABEL_INVALID", f"{found.text}: {text}")


class FlowStoring:
    """Stores flows in one mesh. `dry_run`: only tells what it would do."""

    def __init__(self, client: Client, *, tag: str, dry_run: bool) -> None:
        self._client = client
        self._tag = tag
        self._dry_run = dry_run
        self._versions: dict[str, list[tuple[int, str, set[str]]]] = {}
        """By name, the versions with flow ids and tags: those of the mesh, and those that are added."""

    async def each(self, flows: Sequence[FoundFlow]) -> AsyncIterator[StoredVersion]:
        """Yield what becomes of each flow, as soon as it is stored. Raises: StepflowError."""
        from stepflow.flow import flow_id

        for found in flows:
            identity = flow_id(found.flow)
            change = await self._change(found, identity)
            yield await (self._plan(found, identity, change) if self._dry_run else self._store(found, change))

    async def _change(self, found: FoundFlow, identity: str) -> str:
        name = found.flow.name
        if not name:
            try:
                await self._client.get_flow(identity)
            except NotFound:
                return NEW
            return UNCHANGED

        if name not in self._versions:
            self._versions[name] = [(v.version, v.flow_id, set(v.labels)) for v in await self._stored(name)]
        known = self._versions[name]
        if any(stored == identity for _, stored, _ in known):
            return UNCHANGED
        known.append((known[-1][0] + 1 if known else 1, identity, set()))
        return NEW_VERSION if len(known) > 1 else NEW

    async def _stored(self, name: str) -> list[FlowVersion]:
        """Return the versions of a name: the first of the names that begin with it."""
        async for flow in self._client.list_flows(name):
            return flow.versions if flow.name == name else []
        return []

    async def _store(self, found: FoundFlow, change: str) -> StoredVersion:
        from stepflow.client.requests import NOT_GIVEN
        from stepflow.flow import flow_bytes

        stored = await self._client.store_flow(flow_bytes(found.flow), label=self._tag or NOT_GIVEN)
        return StoredVersion(
            flow=found.text,
            flow_id=stored.flow_id,
            name=found.flow.name,
            version=stored.version or None,
            newest_version=stored.newest_version or None,
            label=self._tag or None,
            label_from=stored.label_from or None,
            change=change,
        )

    async def _plan(self, found: FoundFlow, identity: str, change: str) -> StoredVersion:
        known = self._versions.get(found.flow.name or "", [])
        version = next((number for number, stored, _ in known if stored == identity), None)
        tagged = next((number for number, _, tags in known if self._tag in tags), None) if self._tag else None
        for number, _, tags in known:
            if self._tag:
                (tags.add if number == version else tags.discard)(self._tag)
        return StoredVersion(
            flow=found.text,
            flow_id=identity,
            name=found.flow.name,
            version=version,
            newest_version=known[-1][0] if known else None,
            label=self._tag or None,
            label_from=tagged if tagged != version else None,
            change=change,
        )


__all__ = ["UNCHANGED", "FlowStoring", "StoredVersion", "read_checked"]
