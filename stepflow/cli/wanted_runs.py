"""The filters of `stepflow runs list`: status, flow, labels, time of the beginning."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from stepflow.cli.console import Usage
from stepflow.cli.found_flow import FILE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepflow.cli.display.trees import AnyRun


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRuns:
    """The runs to list; an empty field accepts all."""

    statuses: tuple[str, ...] = ()
    flow: str = ""
    """Name of the flow, or of its file if the flow has no name."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that a run must have, with their texts (`stepflow.rpc.labels`)."""
    since_ms: int = 0
    since: str = ""
    """`since_ms` as it was given."""

    @property
    def flow_name(self) -> str:
        """The name that a mesh can look for; empty if the flow may be without a name."""
        return "" if self.flow.lower().endswith(FILE_SUFFIXES) else self.flow

    def accepts(self, run: AnyRun, status: str) -> bool:
        """Return True if a run is wanted."""
        from stepflow.cli.display.runs import run_name
        from stepflow.rpc.labels import has_labels

        return (
            (not self.statuses or status in self.statuses)
            and self.flow in ("", run_name(run))
            and run.created_at_ms >= self.since_ms
            and has_labels(run.labels, self.labels)
        )

    def __str__(self) -> str:
        """The runs in words: `failed or cancelled runs of greet with team=red since 2d`."""
        parts = [f"{' or '.join(self.statuses)} runs" if self.statuses else "runs"]
        parts += [f"of {self.flow}"] if self.flow else []
        parts += [f"with {', '.join(f'{name}={text}' for name, text in self.labels.items())}"] if self.labels else []
        parts += [f"since {self.since}"] if self.since else []
        return " ".join(parts)


ALL_RUNS = WantedRuns()


def read_labels(texts: Iterable[str]) -> dict[str, str]:
    """Return the labels of `--label NAME=VALUE`. Raises: Usage `OPTION_INVALID`."""
    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise Usage("OPTION_INVALID", f"--label is NAME=VALUE, not {text[:80]!r}")
        if labels.setdefault(name, value) != value:
            raise Usage("OPTION_INVALID", f"--label {name[:80]} is given with two values; no run has both")
    return labels


def read_since(text: str) -> int:
    """Return the time of `--since` in milliseconds since 1970: a duration before now, or an instant.

    An instant without a zone is local time. Raises: Usage `OPTION_INVALID`.
    """
    from stepflow.config.file_models import AGE_MS_MAX
    from stepflow.errors import Invalid
    from stepflow.flow.duration import parse_duration_ms

    try:
        return time.time_ns() // 1_000_000 - parse_duration_ms(text, AGE_MS_MAX)
    except Invalid as error:
        try:
            return max(0, int(datetime.fromisoformat(text.strip()).timestamp() * 1_000))
        except (ValueError, OverflowError, OSError):
            hint = f"{error.message}; an instant is 2026-01-31, or 2026-01-31T08:30"
            raise Usage("OPTION_INVALID", f"--since: {hint}") from None


__all__ = ["ALL_RUNS", "WantedRuns", "read_labels", "read_since"]
