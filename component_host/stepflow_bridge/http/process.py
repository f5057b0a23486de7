"""A server process that listens on a port, and the choice of the port without a race.

Two kinds of servers:
- Self-chosen port: the server announces `{"port": N}` on a line of stdout (stepflow-py 0.9 to 0.11, our SDK). No race.
- Given port (stepflow-py up to 0.7): a free port replaces `{port}` in the arguments or environment. Until the server
  listens, a bound, not listening socket here holds the port: the system gives it to no other process that asks for any
  port, and the server can still bind it, as both sides set SO_REUSEADDR. If another process took that very number, the
  start is tried with another port.

Not here: the conversation with the server, and the time of a restart.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from component_host.supervision.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.supervision.spec import ProcessSpec

PORT_MARK = "{port}"

PORTS_TRIED_MAX = 5

ANNOUNCEMENT_BYTES_MAX = 64 * 1024
"""Output a server may print before it announces its port."""


class EndedError(Exception):
    """The process ended before it listened."""


class PortTakenError(EndedError):
    """The process ended because another process listens on the given port."""


class ListeningProcess:
    """One run of a server that listens on loopback; not reusable."""

    def __init__(self, spec: ProcessSpec, on_exit: Callable[[], None]) -> None:
        self.port = 0
        """0 until a self-chosen port is announced."""
        self._given = PORT_MARK in "".join((*spec.args, *spec.env.values()))
        self._held: socket.socket | None = None
        self._output = b""
        self._changed = asyncio.Event()
        self._on_exit = on_exit

        if self._given:
            self._held, self.port = _hold_port()
            spec = _with_port(spec, self.port)
        self.process = ServerProcess(spec, on_output=self._read, on_exit=self._handle_exit)

    def start(self) -> None:
        """Raises: Invalid, Unavailable."""
        try:
            self.process.start()
        except BaseException:
            self.release_port()
            raise

    async def announced(self) -> int:
        """Wait for the announced port. The caller limits the time. Raises: EndedError."""
        while not self.port:
            self.check()
            self._changed.clear()
            await self._changed.wait()
        return self.port

    def check(self) -> None:
        """Raises: EndedError, if the process has ended; PortTakenError, if because of its port."""
        if self.process.returncode is None:
            return

        if self._given and _is_listening(self.port):
            raise PortTakenError
        raise EndedError

    def release_port(self) -> None:
        """Stop holding the port: the server listens, or never will. Idempotent."""
        if self._held is not None:
            self._held.close()
            self._held = None

    async def stop(self, grace_s: float) -> None:
        self.release_port()
        await self.process.stop(grace_s)

    def _read(self, chunk: bytes) -> None:
        """Look for the announcement. Later output is read, to keep the pipe empty, and dropped."""
        if self.port or len(self._output) > ANNOUNCEMENT_BYTES_MAX:
            return

        *lines, self._output = (self._output + chunk).split(b"\n")
        for line in lines:
            try:
                announced = msgspec.json.decode(line, type=_Announcement)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                continue
            self.port = announced.port
            self._changed.set()
            return

    def _handle_exit(self) -> None:
        self.release_port()
        self._changed.set()
        self._on_exit()


class _Announcement(msgspec.Struct):
    port: int

    def __post_init__(self) -> None:
        if not 0 < self.port < 65_536:
            raise ValueError("not a port")


def _hold_port() -> tuple[socket.socket, int]:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held, held.getsockname()[1]


def _with_port(spec: ProcessSpec, port: int) -> ProcessSpec:
    text = str(port)
    return replace(
        spec,
        args=[argument.replace(PORT_MARK, text) for argument in spec.args],
        env={name: value.replace(PORT_MARK, text) for name, value in spec.env.items()},
    )


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
