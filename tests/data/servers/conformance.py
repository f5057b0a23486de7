"""An SDK server whose components expose attempts, order and overlap to the conformance cases.

State shared between the calls of a run is keyed by run id, so concurrent runs of other tests do not interfere.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from stepflow.component import ComponentError, Context, InvalidInput, component, serve

ATTEMPTS: dict[str | None, list[int]] = defaultdict(list)
"""The attempts that were made, by idempotency key."""

FAILED: dict[str | None, asyncio.Event] = defaultdict(asyncio.Event)
"""Set when `fail_and_tell` has failed in a run."""


@dataclass
class Meeting:
    """The calls of one run that are under way. `gate` opens for each full group."""

    running: int = 0
    peak: int = 0
    arrived: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)


MEETINGS: dict[str | None, Meeting] = defaultdict(Meeting)


@component
async def succeed_at(attempt: int, ctx: Context) -> list[int]:
    """Fail until the given attempt, then return the numbers of all attempts that were made."""
    made = ATTEMPTS[ctx.idempotency_key]
    made.append(ctx.attempt)
    if ctx.attempt < attempt:
        raise ComponentError(f"attempt {ctx.attempt} failed", data={"made": made})
    return made


@component
async def refuse(ctx: Context) -> None:
    raise InvalidInput(f"refused at attempt {ctx.attempt}")


@component
async def never_answer() -> None:
    await asyncio.Event().wait()


@component
async def fail_and_tell(ctx: Context) -> None:
    FAILED[ctx.run_id].set()
    raise ComponentError("out of paper")


@component
async def finish_after_failure(ctx: Context) -> str:
    """Return only when the host has read the failure: the reply to a later request shows that it has."""
    await FAILED[ctx.run_id].wait()
    await ctx.put_blob("a round trip")
    return "finished all the same"


@component
async def meet(group: int, ctx: Context) -> int:
    """Wait until `group` calls of the run are here at the same time; return how many there ever were at most.

    The round trip at the end gives a host that sends more than its window the time to be seen doing so.
    """
    meeting = MEETINGS[ctx.run_id]
    meeting.running += 1
    meeting.arrived += 1
    meeting.peak = max(meeting.peak, meeting.running)
    gate = meeting.gate
    if meeting.arrived % group == 0:
        meeting.gate = asyncio.Event()
        gate.set()
    await gate.wait()
    await ctx.put_blob("a round trip")
    meeting.running -= 1
    return meeting.peak


@component("core/{*path}")
async def core(path: str) -> str:
    return path


@component
async def run_and_report(flow: dict[str, Any], inputs: list[Any], ctx: Context) -> Any:
    """Run a flow with the later generations' word for it, whose reply has the status of the sub-run."""
    flow_id = await ctx.put_blob(flow, blob_type="flow")

    def conversation() -> Any:
        return (yield "runs/submit", {"flowId": flow_id, "inputs": inputs, "wait": True})

    return await ctx._call.ask(conversation())


if __name__ == "__main__":
    serve()
