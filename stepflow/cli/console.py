"""Printing to stdout and stderr, errors and warnings, exit codes.

- stdout carries machine output only (results, JSON, YAML); stderr carries all messages for people.
- Colour is used only on a terminal, and not if NO_COLOR is set.
- Texts for people may quote peers: `say` shows their control characters instead of writing them.
- The exit code of an error is in `stepflow.cli.exits`.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

from stepflow.errors import Invalid
from stepflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.errors import StepflowError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, the convention of shells."""

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STYLED = re.compile(r"(\x1b\[(?:0|(?:1|2|31|32|33|36)(?:;(?:1|2|31|32|33|36))*)m)")


class Usage(Invalid):
    """An error in the command line: options that exclude each other, a file that does not exist."""


class CheckFailed(Invalid):
    """A flow or config that fails its check."""


def out(text: str | bytes) -> None:
    """Write machine output to stdout, unchanged."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode() if isinstance(text, str) else text)
    sys.stdout.buffer.flush()


def say(text: str = "") -> None:
    """Write a line to stderr, its control characters as escapes; the styles of `styled` stay.

    A terminal gets long lines folded between words.
    """
    parts = _STYLED.split(text) if colours_on() else [text]
    shown = "".join(part if index % 2 else printable(part) for index, part in enumerate(parts))
    columns = _terminal_columns()
    if columns is not None and len(shown) > columns:
        from stepflow.cli.folding import fold

        shown = fold(shown, columns)
    print(shown, file=sys.stderr, flush=True)


def show(text: str = "") -> None:
    """Write a line for people to stdout, its control characters as escapes."""
    out(printable(text).encode(errors="replace") + b"\n")


def warn(text: str) -> None:
    """Write a warning line to stderr."""
    say(f"{styled('warning:', 'yellow', 'bold')} {text}")


def error(failure: StepflowError) -> None:
    """Print an error to stderr: its reason code and its message."""
    say(f"{styled(f'error[{failure.reason}]:', 'red', 'bold')} {failure.message}")


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Check the value of an option with fixed choices. Raises: Usage `OPTION_INVALID`, with the closest choice."""
    if value not in known:
        from stepflow.flow.syntax import suggestion

        hint = suggestion(value, tuple(known))
        raise Usage("OPTION_INVALID", f"{option} is one of {', '.join(known)}, not {value!r}{hint}")


def styled(text: str, *styles: str) -> str:
    """Return the text in these styles (`bold`, `red`, …), unchanged if stderr shows no colours."""
    if not styles or not colours_on():
        return text
    return f"\x1b[{';'.join(_STYLES[style] for style in styles)}m{text}\x1b[0m"


def _terminal_columns() -> int | None:
    """Return the width of the terminal that stderr is; None if it is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or None
    except (OSError, ValueError):  # ValueError: a stream without a descriptor
        return None


def colours_on() -> bool:
    """Return True if stderr is a terminal that shows colours."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
