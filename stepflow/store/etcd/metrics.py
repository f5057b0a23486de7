"""The metrics page of an etcd member: its status for users without the root role.

Served at the client address over the same TLS, without a login.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING

from stepflow.store.protocol import StoreUnavailable

if TYPE_CHECKING:
    from stepflow.store.etcd.config import EtcdConfig

PAGE_BYTES_MAX = 4 * 1024 * 1024

_LINE = re.compile(r"^(etcd_[a-z_]+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


async def read_metrics(config: EtcdConfig, endpoint: str) -> dict[str, str]:
    """Return the metrics of a member by name. The value of `etcd_server_version` is the version.

    Raises: StoreUnavailable `STORE_METRICS_UNREADABLE`.
    """
    host, _, port = endpoint.rpartition(":")
    request = f"GET /metrics HTTP/1.0\r\nHost: {endpoint}\r\n\r\n".encode()
    try:
        async with asyncio.timeout(config.call_timeout_s):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=_context(config))
            try:
                writer.write(request)
                head, _, body = (await _read(reader)).partition(b"\r\n\r\n")
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise _unreadable(endpoint, type(error).__name__) from None

    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise _unreadable(endpoint, head.partition(b"\r\n")[0].decode("ascii", "replace")[:80] or "no answer")
    found = {name: value for name, _, value in _LINE.findall(body.decode("utf-8", "replace"))}
    version = re.search(rb'^etcd_server_version\{server_version="([^"]*)"\}', body, re.MULTILINE)
    return found | ({"etcd_server_version": version[1].decode()} if version else {})


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Read to the end, at most `PAGE_BYTES_MAX`."""
    page = bytearray()
    while len(page) < PAGE_BYTES_MAX and (part := await reader.read(64 * 1024)):
        page += part
    return bytes(page)


def _context(config: EtcdConfig) -> ssl.SSLContext | None:
    if not config.tls:
        return None
    context = ssl.create_default_context(cafile=config.ca_file)
    if config.cert_file is not None:
        context.load_cert_chain(config.cert_file, config.key_file, password="")
    return context


def _unreadable(endpoint: str, why: str) -> StoreUnavailable:
    return StoreUnavailable("STORE_METRICS_UNREADABLE", f"etcd at {endpoint} serves no metrics there ({why})")
