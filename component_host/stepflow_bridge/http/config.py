"""The configuration of an HTTP server, after substitution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONCURRENCY_DEFAULT = 1_000
"""Executes at a time in one server: each has a connection, which costs a descriptor on either side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServerConfig:
    """Address or command of a server, after substitution. With a `command`, `url` and `headers` are unused."""

    command: str = ""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    inherit_env: bool = False
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    processes: int = 1
    concurrency: int | None = None
    """Executes at a time in each process."""
    blob_threshold: int = 0
    """Size in bytes from which 0.10 and 0.11 send members of outputs as blobs; 0: never."""
    blob_host: str = "127.0.0.1"
    """Address of this machine at which such servers find blobs."""
    start_timeout_s: float = 30.0
    request_timeout_s: float = 30.0
    """For questions about the server itself; calls have their own timeouts."""
    stop_grace_s: float = 2.0
