"""What the commands print, and how errors look.

- stdout carries machine output only (results, JSON, YAML); stderr carries everything meant for people.
- Colour is used on a terminal only, and not where NO_COLOR is set.
- `Usage` is the one error that ends the process with 2; every other `StepflowError` ends it with 1.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from stepflow.errors import StepflowError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count."""

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Usage(Invalid):
    """The command line itself is wrong: options that exclude each other, a file that is not there."""


def out(text: str | bytes) -> None:
    """Write machine output to stdout, as it is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode() if isinstance(text, str) else text)
    sys.stdout.buffer.flush()


def say(text: str = "") -> None:
    """Write a line for people to stderr."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Write a warning line to stderr."""
    say(f"{styled('warning:', 'yellow', 'bold')} {text}")


def error(failure: StepflowError) -> None:
    """Show an error: its reason for programs, its text for people."""
    say(f"{styled(f'error[{failure.reason}]:', 'red', 'bold')} {failure.message}")


def styled(text: str, *styles: str) -> str:
    """Return the text in these styles (`bold`, `red`, …) when stderr shows them, else as it is."""
    if not styles or not colours_on():
        return text
    return f"\x1b[{';'.join(_STYLES[style] for style in styles)}m{text}\x1b[0m"


def colours_on() -> bool:
    """Say whether stderr is a terminal that should get colours."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
