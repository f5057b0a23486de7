"""Load for a mesh: flows of every kind, each with its expected result.

The input of each flow is `{value, ms}`: a number, and the duration of each component call. The components are those of
`tests/data/servers/ledger.py`; the result depends on `value` alone, so faults must not change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepflow.ids import new_run_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.client import Client

VALUE = {"$input": "value"}
MS = {"$input": "ms"}
RETRY = {"action": "retry", "maxRetries": 9, "backoff": {"type": "constant", "delayMs": 50}}

WIDE_CHARS = 40_000
"""Above the limit for values stored inline in the journal."""

NAP_MS = 700


@dataclass(frozen=True)
class Kind:
    """A flow, and its expected result as a function of the value."""

    name: str
    flow: dict[str, Any]
    expect: Callable[[int], Any]


def _step(step_id: str, component: str, **input: Any) -> dict[str, Any]:
    return {"id": step_id, "component": component, "input": input}


def _add(step_id: str, value: Any) -> dict[str, Any]:
    return _step(step_id, "/ledger/add", value=value, ms=MS)


def _of(step_id: str, path: str = "") -> dict[str, Any]:
    return {"$step": step_id, "path": path} if path else {"$step": step_id}


def _kind(name: str, expect: Callable[[int], Any], output: Any, *steps: dict[str, Any]) -> Kind:
    return Kind(name, {"name": name, "steps": list(steps), "output": output}, expect)


def chain(length: int = 5) -> Kind:
    """Sequential steps."""
    steps = [_add(f"s{n}", _of(f"s{n - 1}") if n else VALUE) for n in range(length)]
    return _kind("chain", lambda value: value + length, _of(f"s{length - 1}"), *steps)


def _fan(width: int = 6) -> Kind:
    """Parallel steps between a first and a last one."""
    middle = [_add(f"m{n}", _of("first")) for n in range(width)]
    last = _step("last", "/ledger/add", value=_of("m0"), ms=MS, after=[_of(each["id"]) for each in middle])
    output = [*(_of(each["id"]) for each in middle), _of("last")]
    return _kind("fan", lambda value: [*[value + 2] * width, value + 3], output, _add("first", VALUE), *middle, last)


_INNER = chain(2).flow


def _succeeded(count: int, result: Any) -> list[dict[str, Any]]:
    return [{"outcome": "success", "result": result}] * count


def _each() -> Kind:
    """A map whose inner flow has two steps."""
    items = [{"value": {"$step": f"i{n}"}, "ms": MS} for n in range(3)]
    each = _step("each", "/builtin/map", workflow={"$literal": _INNER}, items=items)
    steps = [_add(f"i{n}", VALUE) for n in range(3)]
    return _kind("map", lambda value: _succeeded(3, value + 3), _of("each", "results"), *steps, each)


def _nested() -> Kind:
    """A map inside a map."""
    inner = _step("each", "/builtin/map", workflow={"$literal": _INNER}, items=[{"value": VALUE, "ms": MS}] * 2)
    middle = {"steps": [inner], "output": _of("each", "results")}
    outer = _step("outer", "/builtin/map", workflow={"$literal": middle}, items=[{"value": VALUE, "ms": MS}] * 2)
    return _kind("nested", lambda value: _succeeded(2, _succeeded(2, value + 2)), _of("outer", "results"), outer)


def _retries() -> Kind:
    flaky = {**_step("flaky", "/ledger/flaky", value=_of("s"), failures=2, ms=MS), "onError": RETRY}
    return _kind("retries", lambda value: value + 3, _of("end"), _add("s", VALUE), flaky, _add("end", _of("flaky")))


def _sleep() -> Kind:
    nap = _step("nap", "/builtin/sleep", duration_ms=NAP_MS, passthrough=_of("s"))
    return _kind(
        "sleep", lambda value: value + 2, _of("end"), _add("s", VALUE), nap, _add("end", _of("nap", "passthrough"))
    )


def _callback() -> Kind:
    """A component that starts a sub-run and waits for it."""
    ask = _step("ask", "/ledger/delegate", value=_of("s"), ms=MS)
    return _kind("callback", lambda value: value + 4, _of("end"), _add("s", VALUE), ask, _add("end", _of("ask")))


def _wide() -> Kind:
    """Results large enough to be stored as blobs."""
    wide = _step("wide", "/ledger/widen", value=_of("s"), size=WIDE_CHARS)
    again = _step("again", "/ledger/widen", value=_of("wide", "value"), size=1, text=_of("wide", "text"))
    return _kind("wide", lambda value: value + 3, _of("again", "value"), _add("s", VALUE), wide, again)


def _detour() -> Kind:
    """A component that fails permanently, and a default for its result."""
    gone = {**_step("gone", "/ledger/refuse"), "onError": {"action": "useDefault", "defaultValue": 7}}
    return _kind("detour", lambda value: [value + 1, 7], [_of("s"), _of("gone")], _add("s", VALUE), gone)


def newer() -> Kind:
    """A component that only the hosts of a newer version offer, between two that all hosts offer."""
    middle = _step("newer", "/ledger/add_newer", value=_of("s"), ms=MS)
    return _kind("newer", lambda value: value + 3, _of("end"), _add("s", VALUE), middle, _add("end", _of("newer")))


KINDS = (chain(), _fan(), _each(), _nested(), _retries(), _sleep(), _callback(), _wide(), _detour())

BATCH = chain(2)
"""For runs with many items."""


@dataclass(frozen=True)
class Asked:
    """A requested run."""

    run_id: str
    kind: Kind
    values: Sequence[int]

    @classmethod
    def new(cls, kind: Kind, *values: int) -> Asked:
        """Build a request with one item per value."""
        return cls(new_run_id(), kind, values)


async def begin(client: Client, asked: Asked, *, ms: float) -> None:
    """Submit a run; idempotent."""
    inputs = [{"value": value, "ms": ms} for value in asked.values]
    await client.submit_batch(asked.kind.flow, inputs, run_id=asked.run_id)


async def faults_in_result(client: Client, asked: Asked, *, timeout_s: float, cancelled: bool = False) -> list[str]:
    """Wait for the end of a run and return its faults, one sentence each. `cancelled`: the run may be cancelled."""
    run = await client.wait(asked.run_id, timeout_s=timeout_s)
    name = f"{asked.kind.name} {asked.run_id}"
    if not run.ended:
        return [f"{name} is stuck: {run.status} after {timeout_s:g} s"]
    if cancelled and run.status == "cancelled":
        return []
    faults: list[str] = [] if run.status == "completed" else [f"{name} is {run.status}"]
    items = [item async for item in client.items(asked.run_id)]
    for value, item in zip(asked.values, items, strict=True):
        if item.failure is not None:
            faults.append(f"{name} failed for {value}: {item.failure.code} {item.failure.message}")
        elif item.result != asked.kind.expect(value):
            faults.append(f"{name} gave {item.result!r:.200} for {value}, not {asked.kind.expect(value)!r:.200}")
    return faults


async def answers(client: Client, run_id: str) -> dict[str, Any]:
    """Return all that a client can read of an ended run."""
    return {
        "run": await client.get(run_id),
        "items": [item async for item in client.items(run_id)],
        "steps": [step async for step in client.steps(run_id)],
        "events": [event async for event in client.watch(run_id)],
    }


__all__ = ["BATCH", "KINDS", "Asked", "Kind", "answers", "begin", "chain", "faults_in_result", "newer"]
