"""The configuration of a pull plugin, after substitution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONCURRENCY_STARTED = 32
"""Default calls at a time in a worker started here."""

CONCURRENCY_OTHERS = 4
"""Default calls at a time in any other worker: workers do not tell their limit, and 4 is stepflow-py's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullConfig:
    """Queue, command and limits of workers."""

    queue_name: str
    command: str = ""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    inherit_env: bool = True
    processes: int = 1
    concurrency: int | None = None
    queue_timeout_s: float = 30.0
    execution_timeout_s: float | None = None
    start_timeout_s: float = 30.0
    request_timeout_s: float = 30.0
    """For a worker's answer to the question for components, which tests the connection."""
    stop_grace_s: float = 5.0
    """For calls in flight to complete when the plugin is stopped."""
