"""Progress of a run on stderr: a live table on a terminal, lines elsewhere, nothing with `--quiet`.

All views take the same calls, on the event loop of the run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from stepflow.cli import console

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.log_lines import StepLog
    from stepflow.run.views import StepEvent


class View(Protocol):
    """Shows the progress of one run. `interval_s` is the time between calls of `tick`; None for no calls."""

    interval_s: float | None

    def begin(self, items_total: int) -> None: ...
    def on_event(self, event: StepEvent) -> None: ...
    def on_log(self, log: StepLog) -> None:
        """Show log lines of a step, or of a plugin (without a run id)."""

    def tick(self, items_ended: int) -> None: ...
    def print_above(self, text: str) -> bool:
        """Print lines above what is shown; return False if nothing is shown that they could disturb."""

    def hidden(self) -> AbstractContextManager[None]:
        """Show nothing for the duration of the block."""

    def end(self) -> None:
        """Leave the terminal as it was. Idempotent."""


def choose_view(redact: Callable[[str], str], *, quiet: bool) -> View:
    """Return the view that suits stderr; `redact` takes the secrets out of texts."""
    if quiet:
        return QuietView()

    from stepflow.cli.display.lines import LineView
    from stepflow.cli.display.live import LiveView

    return LiveView(redact) if console.colours_on() else LineView(redact)


class QuietView:
    """Shows nothing."""

    interval_s: float | None = None

    def begin(self, items_total: int) -> None: ...
    def on_event(self, event: StepEvent) -> None: ...
    def on_log(self, log: StepLog) -> None: ...
    def tick(self, items_ended: int) -> None: ...
    def end(self) -> None: ...
    def print_above(self, text: str) -> bool:  # noqa: ARG002  # the protocol of views
        return False

    def hidden(self) -> AbstractContextManager[None]:
        return nullcontext()
