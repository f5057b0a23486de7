"""The exit codes of all commands, in one table.

A command that a signal stops exits with 128 and its number. Every other code is here, and `exit_code` finds the one of
an error.
"""

from __future__ import annotations

from stepflow.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, CheckFailed, Usage
from stepflow.errors import (
    AlreadyExists,
    Forbidden,
    Invalid,
    NotFound,
    StepflowError,
    Unauthenticated,
    Unavailable,
)

OK = EXIT_OK
FAILED = EXIT_FAILED
USAGE = EXIT_USAGE
NOT_REACHED = 3
NOT_ALLOWED = 4
TIMED_OUT = 124
INTERRUPTED = EXIT_INTERRUPTED
TERMINATED = 143

MEANINGS = {
    OK: "success",
    FAILED: "a flow, an item, a test case or a check failed, or the state does not permit the command",
    USAGE: "wrong command line or input: an unknown option, a missing file, no such run, a value that does not fit",
    NOT_REACHED: "the target was not reached",
    NOT_ALLOWED: "not allowed: no credential, or not the right one",
    TIMED_OUT: "`--timeout` is over; the run goes on",
    INTERRUPTED: "Ctrl-C (SIGINT)",
    TERMINATED: "SIGTERM; any other signal: 128 and its number",
}
"""Exit code → its meaning."""

CHECK_REASONS = frozenset({"FLOW_INVALID", "SCHEMA_INVALID", "SCHEMA_TOO_LARGE"})
"""Reasons of a flow that fails its check, in this process or in a mesh."""

UNREACHED_REASONS = frozenset({"SERVER_UNAVAILABLE", "SERVER_ENDING", "STORE_UNAVAILABLE", "STORE_UNREACHABLE"})
"""Reasons of a target that does not answer. Other services that are away, such as a plugin's server, are no target."""


def exit_code(error: StepflowError) -> int:
    """Return the exit code of a command that ends with an error."""
    if isinstance(error, Usage):
        return USAGE
    if isinstance(error, CheckFailed) or error.reason in CHECK_REASONS:
        return FAILED
    if isinstance(error, (Unauthenticated, Forbidden)):
        return NOT_ALLOWED
    if isinstance(error, Unavailable) and error.reason in UNREACHED_REASONS:
        return NOT_REACHED
    return USAGE if isinstance(error, (Invalid, NotFound, AlreadyExists)) else FAILED
