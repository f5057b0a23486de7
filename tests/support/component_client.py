"""The host's end of the pipes to a component server, which is a real process.

Every read of `Client` has a timeout; a line that is not a protocol message fails the test.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import ROOT

SERVERS = ROOT / "tests" / "data" / "servers"
WAIT_S = 30.0

Answer = Callable[[str, dict[str, Any]], Any]


class Client:
    """The host's end of the pipes to one server."""

    def __init__(self, script: Path, *arguments: str, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin = self.process.stdin.fileno()
        self.stdout = self.process.stdout.fileno()
        self._received = bytearray()
        self._count = 0

    def send_bytes(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.stdin, view) :]

    def send(self, **message: Any) -> None:
        self.send_bytes(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def request(self, method: str, **params: Any) -> str:
        """Send a request and return its id."""
        self._count += 1
        request_id = f"r{self._count}"
        self.send(id=request_id, method=method, params=params)
        return request_id

    def execute(self, path: str, value: Any = None, **params: Any) -> str:
        return self.request("components/execute", component=path, input=value, attempt=1, observability={}, **params)

    def receive(self) -> dict[str, Any]:
        """Return the next message; a line that is not a message fails the test."""
        deadline = time.monotonic() + WAIT_S
        while (end := self._received.find(b"\n")) < 0:
            ready, _, _ = select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no line within {WAIT_S} s; so far {bytes(self._received[:200])!r}"
            chunk = os.read(self.stdout, 1 << 20)
            assert chunk, "the server has closed its stdout"
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        message: dict[str, Any] = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        return message

    def reply(self, answer: Answer | None = None) -> dict[str, Any]:
        """Return the next reply, answering the server's own requests until it arrives."""
        while "method" in (message := self.receive()):
            if answer is not None and "id" in message:
                self.send(id=message["id"], **answer(message["method"], message["params"]))
        return message

    def call(self, path: str, value: Any = None, answer: Answer | None = None, **params: Any) -> Any:
        """Execute a component and return its output."""
        request_id = self.execute(path, value, **params)
        reply = self.reply(answer)
        assert reply["id"] == request_id
        assert "error" not in reply, reply
        return reply["result"]["output"]

    def error(self, path: str, value: Any = None, answer: Answer | None = None, **params: Any) -> dict[str, Any]:
        """Execute a component that must fail and return the error."""
        request_id = self.execute(path, value, **params)
        reply = self.reply(answer)
        assert reply["id"] == request_id
        error: dict[str, Any] = reply["error"]
        return error

    def initialize(self, **capabilities: Any) -> dict[str, Any]:
        request_id = self.request("initialize", runtime_protocol_version=1, capabilities=capabilities)
        reply = self.receive()
        assert reply["id"] == request_id
        self.send(method="initialized", params={})
        result: dict[str, Any] = reply["result"]
        return result

    def end(self) -> tuple[int, str]:
        """Close stdin; return the exit code and the text on stderr."""
        _, stderr = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, stderr.decode()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self.process.wait(timeout=WAIT_S)


def script(folder: Path, text: str) -> Path:
    path = folder / "server.py"
    path.write_text(text)
    return path


def run(path: Path, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
    )
