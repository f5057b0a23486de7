"""A server process that listens on a port: finding the port without a race, and waiting until it answers there.

Two kinds of servers:
- one that takes a port of its own and announces it, `{"port": N}` on a line of stdout (stepflow-py 0.9 to 0.11, our
  SDK). There is nothing to race for;
- one that is told (stepflow-py up to 0.7): `{port}` in its arguments or environment is replaced by a port that is
  free. Until the server listens the port is held by a socket of ours, bound but not listening: the system gives it to
  nobody who asks for any port, and the server itself can still bind it, as both sides set SO_REUSEADDR. Should someone
  who asked for that very number have been quicker, another port is tried.

Not here: what is said to the server, and when it is started again.
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
"""What a server may print before it announces its port."""


class EndedError(Exception):
    """The process ended before it listened."""


class PortTakenError(EndedError):
    """The same, and somebody else listens on the port that it was given."""


class ListeningProcess:
    """One run of a server that listens on loopback; not reusable."""

    def __init__(self, spec: ProcessSpec, on_exit: Callable[[], None]) -> None:
        self.port = 0
        self._told = PORT_MARK in "".join((*spec.args, *spec.env.values()))
        self._held: socket.socket | None = None
        self._output = b""
        self._changed = asyncio.Event()
        self._on_exit = on_exit
        if self._told:
            self._held, self.port = _hold_port()
            spec = _with_port(spec, self.port)
        self.process = ServerProcess(spec, on_output=self._read, on_exit=self._handle_exit)

    def start(self) -> None:
        """Raises: Invalid, Unavailable."""
        try:
            self.process.start()
        except BaseException:
            self.let_port_go()
            raise

    async def announced(self) -> int:
        """Wait for the port. The caller limits the time. Raises: EndedError."""
        while not self.port:
            self.check()
            self._changed.clear()
            await self._changed.wait()
        return self.port

    def check(self) -> None:
        """Raises: EndedError, if the process has ended; PortTakenError, if that is why."""
        if self.process.returncode is None:
            return
        if self._told and _somebody_listens(self.port):
            raise PortTakenError
        raise EndedError

    def let_port_go(self) -> None:
        """The server listens, or never will. Safe to repeat."""
        if self._held is not None:
            self._held.close()
            self._held = None

    async def stop(self, grace_s: float) -> None:
        self.let_port_go()
        await self.process.stop(grace_s)

    def _read(self, chunk: bytes) -> None:
        """Look for the announcement; what is printed later is read, so that the server can go on, and dropped."""
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
        self.let_port_go()
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


def _somebody_listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
