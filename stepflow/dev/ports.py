"""Free ports on loopback."""

from __future__ import annotations

import errno
import socket

from stepflow.errors import FailedPrecondition

HOST = "127.0.0.1"


def check_port(port: int) -> None:
    """Check that a port can be listened on.

    Raises: FailedPrecondition `PORT_TAKEN`, `PORT_FORBIDDEN`, with the next step.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closing connection does not occupy the port

        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                text = f"port {port} is reserved for privileged users; choose a port above 1023"
                raise FailedPrecondition("PORT_FORBIDDEN", text) from None
            raise FailedPrecondition(
                "PORT_TAKEN",
                f"another program listens on port {port}. If it is a mesh, use it: `stepflow cluster status --server "
                f"localhost:{port}`. Else choose another port: `stepflow dev --port {free_port()}`",
                port=port,
            ) from None


def free_port() -> int:
    """Return a port of loopback on which no program listens at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
