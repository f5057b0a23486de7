"""TLS files, and addresses."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. A server needs `cert` and `key`; with `ca` it accepts only clients with a certificate of that CA.

    A client trusts `ca` (None: the system's authorities) and presents `cert`, if any. `name` is the name expected in
    servers' certificates; None: the address that the client connects to.
    """

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise Invalid("TLS_INVALID", "a certificate and its key go together: give both files, or none")

    def for_server(self) -> grpc.ServerCredentials:
        """Return the credentials of a server. Raises: Invalid `TLS_INVALID`: a file is missing or unreadable."""
        if self.cert is None or self.key is None:
            raise Invalid("TLS_INVALID", "a server needs a certificate and its key")
        ca = None if self.ca is None else _read(self.ca)
        return grpc.ssl_server_credentials(
            [(_read(self.key), _read(self.cert))], ca, require_client_auth=ca is not None
        )

    def for_client(self) -> grpc.ChannelCredentials:
        """Return the credentials of a client. Raises: Invalid `TLS_INVALID`: a file is unreadable."""
        return grpc.ssl_channel_credentials(
            None if self.ca is None else _read(self.ca),
            None if self.key is None else _read(self.key),
            None if self.cert is None else _read(self.cert),
        )


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Invalid("TLS_INVALID", f"cannot read {path}: {error.strerror}") from None
    if b"-----BEGIN" not in content:
        raise Invalid("TLS_INVALID", f"{path} is not a PEM file")
    return content


def is_loopback(address: str) -> bool:
    """Return True if HOST:PORT is reachable from this machine only."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT. Raises: Invalid `ADDRESS_INVALID`."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Invalid("ADDRESS_INVALID", f"{address[:200]!r} is not HOST:PORT")
    return host, int(port)


__all__ = ["Tls", "is_loopback", "parse_address"]
