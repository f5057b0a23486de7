"""Failures (data) and errors (exceptions), the two ways in which something can go wrong.

A *failure* is an outcome of a step or an item: it is journaled, returned to whoever asked for the run,
and never raised. Its codes are those of the StepFlow protocol.

An *error* is an exception of the mesh. Its class is a *family*, which says what the caller should do and
fixes the gRPC status; its `reason` is for programs, its text for people. Nobody matches on text.

    StepflowError
    ├── Invalid          fix the request
    ├── NotFound         look elsewhere
    ├── Exists           use the other one
    ├── Refused          wait until someone changes something
    ├── Conflict         start the larger step again (lease lost, stale placement)
    ├── Overloaded       back off
    ├── Unavailable      repeat the same call
    ├── Deadline         assume neither outcome
    ├── DataLoss         page a person
    ├── Unauthenticated  bring a credential
    └── Forbidden        bring another one

Pure: imports nothing of ours and nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """Failure codes with their wire numbers; in JSON they appear by name."""

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
    """A failed outcome. `data` is compact JSON text, empty when there are no details."""

    code: Code
    message: str
    data: bytes = b""


class StepflowError(Exception):
    """Base of all errors of the mesh; never raised itself.

    `reason` is an upper-case constant (`FLOW_INVALID`); `details` are the named facts behind the text
    and never hold secrets or payloads.
    """

    status: ClassVar[str]

    def __init__(self, reason: str, message: str, **details: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details


class Invalid(StepflowError):
    """The request can never succeed as it is."""

    status = "INVALID_ARGUMENT"


class NotFound(StepflowError):
    """What was named does not exist."""

    status = "NOT_FOUND"


class Exists(StepflowError):
    """The name is taken by something else."""

    status = "ALREADY_EXISTS"


class Refused(StepflowError):
    """Not in this state; someone has to change something first."""

    status = "FAILED_PRECONDITION"


class Conflict(StepflowError):
    """Somebody else was first: a lost lease, a stale placement."""

    status = "ABORTED"


class Overloaded(StepflowError):
    """A limit is reached for now."""

    status = "RESOURCE_EXHAUSTED"


class Unavailable(StepflowError):
    """Not reachable for now; the same call may be repeated."""

    status = "UNAVAILABLE"


class Deadline(StepflowError):
    """Too late to know the outcome."""

    status = "DEADLINE_EXCEEDED"


class DataLoss(StepflowError):
    """Stored data is missing or damaged."""

    status = "DATA_LOSS"


class Unauthenticated(StepflowError):
    """No valid credential."""

    status = "UNAUTHENTICATED"


class Forbidden(StepflowError):
    """The credential does not allow this."""

    status = "PERMISSION_DENIED"
