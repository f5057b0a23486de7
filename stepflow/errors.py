"""Failures (data) and errors (exceptions).

A *failure* is an outcome of a step or an item: journaled, returned to the run's caller, never raised. Its codes are
those of the StepFlow protocol.

An *error* is an exception of the mesh. Its class is a *family*, which tells the caller how to react and fixes the gRPC
status (the class attribute `status`). Programs match on `reason`; the text is for people.

    StepflowError
    ├── Invalid             fix the request
    ├── NotFound            look elsewhere
    ├── AlreadyExists       use the existing object
    ├── FailedPrecondition  change the state first
    ├── Conflict            restart the larger operation (lease lost, stale assignment)
    ├── Overloaded          back off
    ├── Unavailable         repeat the same call
    ├── DeadlineExceeded    assume neither outcome
    ├── DataLoss            page an operator
    ├── Unauthenticated     send a credential
    └── Forbidden           send another credential

Pure: imports only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """Failure codes with their wire numbers. JSON has them by name."""

    UNSPECIFIED = 0
    TIMEOUT = 1
    INVALID_INPUT = 2
    COMPONENT_FAILED = 3
    CANCELLED = 4
    UNREACHABLE = 5
    COMPONENT_NOT_FOUND = 6
    RESOURCE_UNAVAILABLE = 7
    EXPRESSION_FAILURE = 8
    ORCHESTRATOR_ERROR = 9
    WORKER_ERROR = 10


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed outcome. `data` is compact JSON, empty without details."""

    code: Code
    message: str
    data: bytes = b""


class StepflowError(Exception):
    """Base of all errors of the mesh; only its subclasses are raised.

    `reason` is an upper-case constant (`FLOW_INVALID`). `details` are the named facts of the text, without secrets and
    payloads.
    """

    status: ClassVar[str]
    """Name of the gRPC status."""

    def __init__(self, reason: str, message: str, **details: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details


class Invalid(StepflowError):
    """The request can never succeed unchanged."""

    status = "INVALID_ARGUMENT"


class NotFound(StepflowError):
    """The named object does not exist."""

    status = "NOT_FOUND"


class AlreadyExists(StepflowError):
    """The name is taken by another object."""

    status = "ALREADY_EXISTS"


class FailedPrecondition(StepflowError):
    """Impossible in the present state, which must change first."""

    status = "FAILED_PRECONDITION"


class Conflict(StepflowError):
    """A concurrent change was first: a lost lease, a stale assignment."""

    status = "ABORTED"


class Overloaded(StepflowError):
    """A limit is reached; retry later."""

    status = "RESOURCE_EXHAUSTED"


class Unavailable(StepflowError):
    """Temporarily unreachable; the same call may be repeated."""

    status = "UNAVAILABLE"


class DeadlineExceeded(StepflowError):
    """The deadline passed before the outcome was known."""

    status = "DEADLINE_EXCEEDED"


class DataLoss(StepflowError):
    """Stored data is missing or damaged."""

    status = "DATA_LOSS"


class Unauthenticated(StepflowError):
    """No valid credential."""

    status = "UNAUTHENTICATED"


class Forbidden(StepflowError):
    """The credential does not permit the request."""

    status = "PERMISSION_DENIED"


Exists = AlreadyExists
Refused = FailedPrecondition
Deadline = DeadlineExceeded
"""Former names, aliases of the same classes until 1.0."""
