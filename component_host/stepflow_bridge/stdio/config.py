"""The configuration of a stdio server, after substitution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioServerConfig:
    """Command and limits of a server. `args` and `env` are after substitution."""

    command: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    inherit_env: bool = False
    processes: int = 1
    concurrency: int | None = None
    """Executes at a time in each process; None: one where call-backs cannot be attributed, else without limit."""
    line_bytes_max: int | None = None
    """Longest line the server reads; None: as announced, or as its generation has it."""
    start_timeout_s: float = 30.0
    request_timeout_s: float = 30.0
    """For questions about the server itself; calls have their own timeouts."""
    stop_grace_s: float = 2.0
