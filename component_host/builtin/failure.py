"""How code below a backend ends a call with a failure of its choice: it raises `CallFailed`."""

from __future__ import annotations

from stepflow.codec import encode
from stepflow.errors import (
    Code,
    Deadline,
    Failure,
    Invalid,
    NotFound,
    Overloaded,
    StepflowError,
    Unavailable,
)


class CallFailed(Exception):  # says what happened, like the families of StepflowError
    """Carries the failure of the call; `data` are JSON values that explain it."""

    def __init__(self, code: Code, message: str, **data: object) -> None:
        super().__init__(message)
        self.failure = Failure(code, message, encode(data) if data else b"")


def failure_of(error: StepflowError, component: str) -> Failure:
    """Return the failure of a call that ran into an error of the mesh."""
    if isinstance(error, Invalid):
        code = Code.INVALID_INPUT
    elif isinstance(error, (NotFound, Unavailable, Overloaded, Deadline)):
        code = Code.RESOURCE_UNAVAILABLE
    else:
        code = Code.COMPONENT_FAILED
    return Failure(code, f"{component}: {error.message}", encode({"reason": error.reason}))
