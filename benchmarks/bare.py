"""The baseline: a bare JSON-RPC client over stdio or HTTP that keeps a fixed number of calls in flight."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import time
from itertools import count

import msgspec


def bare_calls_per_s(command: list[str], *, component: str, window: int, calls: int) -> float:
    """Return the calls per second of one server process with `window` calls in flight."""
    read_end, write_end = os.pipe()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=write_end, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        pipe = process.stdin.fileno()
        hello = {
            "runtime_protocol_version": 1,
            "runtimeProtocolVersion": 1,
            "protocol_prefix": "bench",
        }
        _write(pipe, [_line(1, "initialize", hello)])
        lines = _Lines(read_end)
        lines.read(1)
        # Some servers make the pipe non-blocking but write as if it blocked, and lose output on EAGAIN.
        fcntl.fcntl(write_end, fcntl.F_SETFL, fcntl.fcntl(write_end, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        _write(pipe, [msgspec.json.encode({"jsonrpc": "2.0", "method": "initialized", "params": {}})])
        started = time.perf_counter()
        sent = received = 0
        while received < calls:
            burst = min(window - (sent - received), calls - sent)
            if burst:
                _write(pipe, [_execute(sent + index + 2, component) for index in range(burst)])
                sent += burst
            received += lines.read(1)
        elapsed = time.perf_counter() - started
        process.stdin.close()
        process.wait(10)
    os.close(read_end)
    os.close(write_end)
    return calls / elapsed


async def bare_http_calls_per_s(port: int, *, component: str, window: int, calls: int) -> float:
    """Return the calls per second of one server on a loopback port, over `window` keep-alive connections."""
    numbers = count(1)
    left = calls

    async def one() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        while left > 0:
            left -= 1
            body = _execute(next(numbers), component)
            writer.write(_POST % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            assert b'"error"' not in await reader.readexactly(size)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(window)))
    return calls / (time.perf_counter() - started)


_POST = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Accept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n"
)


def _execute(number: int, component: str) -> bytes:
    params = {
        "component": component,
        "input": {"value": number},
        "attempt": 1,
        "step_id": "s",
        "run_id": "00000000-0000-0000-0000-000000000000",
        "flow_id": "f" * 64,
        "observability": {},
    }
    return _line(number, "components/execute", params)


def _line(number: int, method: str, params: object) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": str(number), "method": method, "params": params})


def _write(pipe: int, lines: list[bytes]) -> None:
    data = memoryview(b"\n".join(lines) + b"\n")
    while data:
        data = data[os.write(pipe, data) :]


class _Lines:
    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._rest = b""

    def read(self, at_least: int) -> int:
        """Wait for `at_least` replies. Return the number of replies read."""
        count = 0
        while count < at_least:
            chunk = os.read(self._pipe, 1 << 20)
            if not chunk:
                raise RuntimeError("the server ended")
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                reply = msgspec.json.decode(line)
                assert "error" not in reply, reply
                count += "id" in reply
        return count
