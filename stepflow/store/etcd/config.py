"""The connection to an etcd: endpoints, TLS, login, and the prefix of the mesh's keys.

User errors are found here, before the first connection, because gRPC only reports that it cannot connect.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from stepflow.errors import Invalid
from stepflow.store.protocol import OP_OVERHEAD_BYTES

CALL_TIMEOUT_S = 1.0

PREFIX_BYTES_MAX = 32
"""Keeps every transaction that passes `check_txn` within etcd's limit."""

DEFAULT_PREFIX = "stepflow/"
DEFAULT_PORT = 2379

assert PREFIX_BYTES_MAX <= OP_OVERHEAD_BYTES - 28  # etcd's encoding adds the rest to key and value


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """The connection to one etcd cluster; `parse` builds it from user input.

    `endpoints` are `host:port`. Files are PEM; without `ca_file`, gRPC's public authorities are trusted.
    """

    endpoints: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    call_timeout_s: float = CALL_TIMEOUT_S

    @classmethod
    def parse(
        cls,
        endpoints: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        user: str = "",
        password: str = "",
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> EtcdConfig:
        """Read endpoints such as `etcd-0:2379,etcd-1:2379` or `https://etcd:2379`.

        `https://` or any file turns TLS on. Raises: Invalid `ETCD_CONFIG_INVALID`.
        """
        schemes: set[str] = set()
        addresses = [_address(text, schemes) for text in endpoints.split(",") if text.strip()]
        if not addresses:
            raise _invalid(f"no etcd endpoint in {endpoints!r}; expected host:port, several separated by commas")

        if {"http", "https"} <= schemes:
            raise _invalid("etcd endpoints with and without TLS: all must be https:// or none")
        files = any((ca_file, cert_file, key_file))
        if files and "http" in schemes:
            raise _invalid("certificates are given for etcd endpoints without TLS: write https://")
        if bool(cert_file) != bool(key_file):
            raise _invalid("a client certificate for etcd needs both its file and the file of its key")
        if bool(user) != bool(password):
            raise _invalid("a login at etcd needs both user and password")
        if len(prefix.encode()) > PREFIX_BYTES_MAX:
            raise _invalid(f"the etcd prefix {prefix!r} is longer than {PREFIX_BYTES_MAX} bytes")
        if not call_timeout_s > 0:
            raise _invalid(f"a time-out of {call_timeout_s} s for calls to etcd; it must be above 0")

        return cls(
            tuple(dict.fromkeys(addresses)),
            prefix,
            files or "https" in schemes,
            Path(ca_file) if ca_file else None,
            Path(cert_file) if cert_file else None,
            Path(key_file) if key_file else None,
            user=user,
            password=password,
            call_timeout_s=call_timeout_s,
        )

    def read_files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the contents of the authority, certificate and key files; None for files not configured.

        Raises: Invalid `ETCD_CONFIG_INVALID`, naming the faulty file.
        """
        _check_certificates(self)
        return _read(self.ca_file), _read(self.cert_file), _read(self.key_file)


def _address(text: str, schemes: set[str]) -> str:
    text = text.strip()
    if "@" in text:  # do not show the text: it may hold a password
        raise _invalid("an etcd endpoint holds no user and password; they are options of their own")
    url = urlsplit(text if "://" in text else f"//{text}")
    schemes.add(url.scheme)
    try:
        host, port = url.hostname, url.port or DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if host is None or url.scheme not in ("", "http", "https") or url.path.strip("/"):
        raise _invalid(f"{text!r} is no etcd endpoint; expected host:port, http://host:port or https://host:port")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise _invalid(f"{path} for etcd cannot be read: {error.strerror}") from None


def _check_certificates(config: EtcdConfig) -> None:
    """Refuse files that are not certificates or keys: gRPC would only report that it cannot connect."""
    path = config.ca_file
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if path is not None:
            _read(path)
            context.load_verify_locations(path)
        path = config.cert_file
        if path is not None:
            _read(path)
            _read(config.key_file)
            context.load_cert_chain(
                path, config.key_file, password=""
            )  # without it, an encrypted key asks the terminal
    except (ssl.SSLError, OSError) as error:
        raise _invalid(f"{path} for etcd is not what it should be (PEM, the key not encrypted): {error}") from None


def _invalid(message: str) -> Invalid:
    return Invalid("ETCD_CONFIG_INVALID", message)
