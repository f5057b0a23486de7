"""A server with one component for each behaviour that a host must handle."""

import asyncio
import os
import subprocess
import sys
import threading
from typing import Any

from stepflow.component import (
    ComponentError,
    Context,
    FlowFailed,
    HostError,
    InvalidInput,
    ResourceUnavailable,
    component,
    serve,
)

GATES: dict[str, threading.Event] = {}


def gate(name: str) -> threading.Event:
    return GATES.setdefault(name, threading.Event())


class OwnError(InvalidInput):
    """Does not call the constructor of its base."""

    def __init__(self) -> None:
        Exception.__init__(self, "in its own way")


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError


@component(inline=True)
def add(a: int, b: int) -> int:
    return a + b


@component
async def add_async(a: int, b: int) -> int:
    return a + b


@component
def wait_for_gate(name: str) -> str:
    """Hold a thread until `/open_gate` is called with the same name."""
    gate(name).wait()
    return name


@component
async def wait_in_executor() -> None:
    """Block a thread of the event loop's default executor until the process ends."""
    await asyncio.to_thread(threading.Event().wait)


@component
async def open_gate(name: str) -> str:
    gate(name).set()
    return name


@component
async def echo(input: Any) -> Any:  # the name that takes the whole input
    await asyncio.sleep(0)
    return input


@component
def size(text: str) -> int:
    return len(text)


@component
def big(count: int) -> str:
    return "x" * count


@component
def facts(ctx: Context) -> dict[str, Any]:
    remaining_s = ctx.remaining_s()
    return {
        "run_id": ctx.run_id,
        "step_id": ctx.step_id,
        "flow_id": ctx.flow_id,
        "item": ctx.item,
        "attempt": ctx.attempt,
        "idempotency_key": ctx.idempotency_key,
        "timeout_ms": ctx.timeout_ms,
        "has_deadline": ctx.deadline is not None,
        "remaining_is_less": remaining_s is not None and 0 < remaining_s <= 60,
        "cancelled": ctx.cancelled,
        "path_params": dict(ctx.path_params),
    }


@component
def fail(kind: str, ctx: Context) -> None:
    match kind:
        case "component":
            raise ComponentError("it broke", data={"part": 7})
        case "details without a JSON form":
            raise ComponentError("it broke", data=object())
        case "input":
            raise InvalidInput("the input is odd")
        case "resource":
            raise ResourceUnavailable("no such service")
        case "os":
            raise FileNotFoundError(2, "No such file", "x.txt")
        case "exit":
            sys.exit(3)
        case "own":
            raise KeyError("secret place")
        case "silent":
            raise RuntimeError
        case "own class":
            raise OwnError
        case "unprintable":
            raise UnprintableError
        case "undecodable":
            raise RuntimeError("file \udcff.txt")


@component
async def fail_async(kind: str) -> None:
    await asyncio.sleep(0)
    raise ValueError(kind)


@component
async def cancels_itself() -> None:
    raise asyncio.CancelledError


@component
def no_json() -> Any:
    return {"value": object()}


@component
def forgets_result(ctx: Context) -> Any:
    return {"blob": ctx.put_blob(1)}


@component
async def blob_async(value: Any, ctx: Context) -> Any:
    blob_id = await ctx.put_blob(value)
    return [blob_id, await ctx.get_blob(blob_id)]


@component
def blob_sync(value: Any, ctx: Context) -> Any:
    blob_id = ctx.put_blob(value).result()
    return [blob_id, ctx.get_blob(blob_id).result()]


@component(inline=True)
def blob_inline(ctx: Context) -> Any:
    return ctx.put_blob(1).result()


@component
async def blobs_at_once(count: int, ctx: Context) -> list[str]:
    return list(await asyncio.gather(*[ctx.put_blob(index) for index in range(count)]))


@component
async def missing_blob(ctx: Context) -> Any:
    try:
        return await ctx.get_blob("0" * 64)
    except HostError as error:
        return {"code": error.code, "message": error.message}


@component
def flow_sync(flow: dict[str, Any] | str, value: Any, ctx: Context) -> Any:
    return ctx.run_flow(flow, value).result()


@component
async def flow_async(flow: dict[str, Any] | str, value: Any, ctx: Context) -> Any:
    try:
        return await ctx.run_flow(flow, value)
    except FlowFailed as failed:
        return {"failed": failed.code, "data": failed.data}


@component
async def flows(flow: str, inputs: list[Any], ctx: Context) -> list[Any]:
    results = await ctx.run_flows(flow, inputs, max_concurrency=2)
    return [result.value if result.ok else f"{result.code}: {result.message}" for result in results]


@component
async def metadata(ctx: Context) -> Any:
    found = await ctx.metadata()
    return [found.flow, found.step]


@component
async def slow_progress(ctx: Context) -> str:
    ctx.progress(1, 2, "half")
    await ctx.get_blob("wait")
    ctx.progress(2, 2, "all")
    return "done"


@component
def much_progress(count: int, ctx: Context) -> str:
    for done in range(1, count + 1):
        ctx.progress(done, count)
    return "done"


@component
async def wait_forever(ctx: Context) -> None:
    ctx.progress(message="waiting")
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaned up", file=sys.stderr, flush=True)


@component
def wait_until_cancelled(ctx: Context) -> str:
    ctx.progress(message="waiting")
    pause = threading.Event()
    while not ctx.cancelled:
        pause.wait(0.01)
    return "saw it"


@component
def wait_for_host(ctx: Context) -> Any:
    return ctx.get_blob("never answered").result()


@component
def prints(ctx: Context) -> str:
    print('{"jsonrpc":"2.0","id":"forged","result":{}}')
    os.write(1, b"raw bytes on descriptor one\n")
    subprocess.run([sys.executable, "-c", "import sys; print('child', repr(sys.stdin.read()))"], check=True)
    ctx.log.warning("a word from the component")
    return "printed"


@component
async def in_a_task() -> bool:
    """Time-outs need the task that runs them."""
    async with asyncio.timeout(60):
        await asyncio.sleep(0)
    return asyncio.current_task() is not None


if __name__ == "__main__":
    serve(threads=4)
