"""The check of flows against the mesh: before a run is admitted, and for clients that only ask.

- A verdict depends on the flow, the overrides, the names of the variables and the catalogue. It is kept under these, so
  a repeated submission pays for a look into a table.
- Checks run in threads, few at a time; equal ones at the same time are one. One whose client leaves before its turn is
  not made.
- A finding is an answer, never an error of the check. What a failed check means is for the caller.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from stepflow.codec import encode
from stepflow.errors import Invalid
from stepflow.flow.diagnostics import OF_VALUES, Diagnostics
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from control_plane.offers import MeshOffers
    from stepflow.check import Catalogue
    from stepflow.flow import Diagnostic, Flow
    from stepflow.store import Store

VERDICTS_MAX = 4_096
FINDINGS_KEPT_MAX = 20_000
"""Verdicts in memory, and their findings together; the least recently used go first."""

VERDICT_CHARS_MAX = 64 * 1024
"""Texts of a verdict that is kept; a longer one is made again. Names of a flow may have any length."""

CHECKS_AT_ONCE = 2

_NAMED_IN_ERROR = 3
_TEXT_CHARS = 300
"""Findings in the text of a refusal, and the length of each. Its details have more."""


class _VerdictKey(NamedTuple):
    """What a verdict depends on. Digests, because clients choose the lengths."""

    flow_id: str
    overrides: bytes
    variables: bytes
    """Of the names with a value; empty if values come later."""
    revision: int


class FlowVerdict(NamedTuple):
    """The findings about a flow. `refused`: one of them is an error, so no run is admitted."""

    found: Diagnostics
    refused: bool


class FlowChecks:
    """Checks flows for one control plane."""

    def __init__(self, offers: MeshOffers, runs: Store) -> None:
        """`runs`: the store as readers of runs see it."""
        self._offers = offers
        self._runs = runs
        self._verdicts: OrderedDict[_VerdictKey, FlowVerdict] = OrderedDict()
        self._findings = 0
        """Findings of all kept verdicts."""
        self._running: dict[_VerdictKey, asyncio.Task[FlowVerdict]] = {}
        self._slots = asyncio.Semaphore(CHECKS_AT_ONCE)

    def start(self) -> None:
        """Begin to follow what hosts offer, for a server of the API."""
        self._offers.start()

    async def admit(
        self, run_id: str, flow: Flow, flow_id: str, variables: Collection[str], overrides: Any = None
    ) -> None:
        """Refuse a submission whose flow has errors. One of a run that exists passes, whatever the mesh offers now.

        Raises: Invalid (`FLOW_INVALID`, `VARIABLES_INVALID`; as `verdict`).
        """
        found, refused = await self.verdict(flow, flow_id, variables, overrides)
        if refused and await self._runs.get(keys.run(run_id)) is None:
            refuse_errors(found)

    async def verdict(
        self, flow: Flow, flow_id: str, variables: Collection[str] | None, overrides: Any = None
    ) -> FlowVerdict:
        """Return all findings about a flow. `variables`: names of those with a value; None: values come later.

        Errors are found twice, the second time by what the store says then.

        Raises: Invalid, the overrides cannot be applied.
        """
        verdict = await self._present_verdict(flow, flow_id, variables, overrides)
        if not verdict.refused:
            return verdict
        await self._offers.refresh()
        return await self._present_verdict(flow, flow_id, variables, overrides)

    async def _present_verdict(
        self, flow: Flow, flow_id: str, variables: Collection[str] | None, overrides: Any
    ) -> FlowVerdict:
        """Return the verdict by what is known of the mesh, which may lag behind."""
        revision, catalogue = self._offers.known() or await self._offers.current()
        key = _VerdictKey(
            flow_id,
            b"" if overrides is None else hashlib.sha256(encode(overrides)).digest(),
            b"" if variables is None else hashlib.sha256(encode(sorted(set(variables)))).digest(),
            revision,
        )
        while (running := self._running.get(key)) is None:
            known = self._verdicts.get(key)
            if known is not None:
                self._verdicts.move_to_end(key)
                return known

            await self._slots.acquire()  # a client that leaves waits no longer
            if key in self._running or key in self._verdicts:  # an equal check has begun meanwhile
                self._slots.release()
                continue
            running = self._in_thread(_findings, flow, catalogue, variables, overrides)
            self._running[key] = running
            running.add_done_callback(partial(self._ended, key))
            break
        return await asyncio.shield(running)  # a client that leaves must not end the check of others

    async def types_verdict(
        self, flow: Flow, variables: Collection[str] | None, overrides: Any, *, strict: bool
    ) -> FlowVerdict:
        """Return all findings about a flow, with those of its types. Raises: Invalid, as `verdict`."""
        await self._offers.current()
        await self._offers.refresh()
        _, catalogue = await self._offers.current()
        await self._slots.acquire()
        return await asyncio.shield(self._in_thread(_with_types, flow, catalogue, variables, overrides, strict=strict))

    def _in_thread(
        self, check: Callable[..., Diagnostics], *arguments: Any, **options: Any
    ) -> asyncio.Task[FlowVerdict]:
        """Begin a check in the slot of the caller, which is free again when the thread has ended."""

        async def checked() -> FlowVerdict:
            return _verdict(await asyncio.to_thread(check, *arguments, **options))

        def ended(task: asyncio.Task[FlowVerdict]) -> None:
            self._slots.release()
            if not task.cancelled():
                task.exception()  # without clients left, asyncio would log it as lost

        task = asyncio.create_task(checked(), name="check a flow")
        task.add_done_callback(ended)
        return task

    def _ended(self, key: _VerdictKey, running: asyncio.Task[FlowVerdict]) -> None:
        del self._running[key]
        if not running.cancelled() and running.exception() is None:
            self._keep(key, running.result())

    def _keep(self, key: _VerdictKey, verdict: FlowVerdict) -> None:
        """Keep a verdict, unless it is very long, or of a catalogue that was none."""
        if not key.revision or _chars(verdict.found) > VERDICT_CHARS_MAX:
            return
        self._verdicts[key] = verdict
        self._findings += len(verdict.found)
        while len(self._verdicts) > VERDICTS_MAX or self._findings > FINDINGS_KEPT_MAX:
            _, dropped = self._verdicts.popitem(last=False)
            self._findings -= len(dropped.found)


def _chars(found: Diagnostics) -> int:
    facts = (str(fact) for item in found for fact in item.data.values())
    return sum(len(item.formatted) + len(item.path or "") for item in found) + sum(map(len, facts))


def _verdict(found: Diagnostics) -> FlowVerdict:
    return FlowVerdict(found, found.blocks)


def refuse_errors(found: Diagnostics) -> None:
    """Refuse a submission whose check has found errors.

    Raises: Invalid `VARIABLES_INVALID`, all errors are about values of variables; `FLOW_INVALID`.
    """
    errors = [item for item in found if item.level != "warning"]
    if not errors:
        return

    listed = "; ".join(map(_text, errors[:_NAMED_IN_ERROR]))
    more = f"; and {len(errors) - _NAMED_IN_ERROR} more" if len(errors) > _NAMED_IN_ERROR else ""
    reason = "VARIABLES_INVALID" if all(item.code in OF_VALUES for item in errors) else "FLOW_INVALID"
    raise Invalid(
        reason,
        f"the check before the run has found {len(errors)} error{'s' if len(errors) > 1 else ''}: {listed}{more}",
        diagnostics=found.to_tree(),
    )


def _text(item: Diagnostic) -> str:
    text = item.formatted if len(item.formatted) <= _TEXT_CHARS else item.formatted[:_TEXT_CHARS] + "…"
    return f"{text} ({item.path})" if item.path else text


def _findings(flow: Flow, catalogue: Catalogue, variables: Collection[str] | None, overrides: Any) -> Diagnostics:
    from stepflow.check import check_flow

    values = None if variables is None else dict.fromkeys(variables)
    return check_flow(flow, catalogue=catalogue, variables=values, overrides=overrides)


def _with_types(
    flow: Flow, catalogue: Catalogue, variables: Collection[str] | None, overrides: Any, *, strict: bool
) -> Diagnostics:
    from stepflow.check import check_against, including_types
    from stepflow.flow import apply_overrides, validate_flow
    from stepflow.flow.types import analyse_flow

    # 1. The flow alone.
    if overrides is not None:
        flow = apply_overrides(flow, overrides)
    found = Diagnostics(flow.warnings) + validate_flow(flow)
    if found.num_fatal:
        return found

    # 2. Against the mesh.
    values = None if variables is None else dict.fromkeys(variables)
    found += check_against(flow, catalogue=catalogue, variables=values, with_types=False)
    types = analyse_flow(flow, catalogue.schemas, is_strict=strict)
    return including_types(found, flow, types, is_strict=strict)


__all__ = ["FlowChecks", "FlowVerdict", "refuse_errors"]
