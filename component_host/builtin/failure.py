"""The exception for failing a call from a builtin component, and failures for errors of the mesh."""

from __future__ import annotations

from stepflow.codec import encode
from stepflow.errors import (
    Code,
    DeadlineExceeded,
    Failure,
    Invalid,
    NotFound,
    Overloaded,
    StepflowError,
    Unavailable,
)


class CallFailed(Exception):  # named by the event, like the families of StepflowError
    """Fails the call; `data` are JSON values with details."""

    def __init__(self, code: Code, message: str, **data: object) -> None:
        super().__init__(message)
        self.failure = Failure(code, message, encode(data) if data else b"")


def failure_of(error: StepflowError, component: str) -> Failure:
    """Return the failure for an error of the mesh during a call."""
    if isinstance(error, Invalid):
        code = Code.INVALID_INPUT
    elif isinstance(error, (NotFound, Unavailable, Overloaded, DeadlineExceeded)):
        code = Code.RESOURCE_UNAVAILABLE
    else:
        code = Code.COMPONENT_FAILED
    return Failure(code, f"{component}: {error.message}", encode({"reason": error.reason}))
