"""The meaning of etcd's errors for callers of the store.

- Etcd has no machine-readable reasons, so one table matches the texts of its errors.
- Only errors that rule out an effect are definite; after all others the request may have been executed.

Source of the errors: etcd v3.5, `rpctypes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from stepflow.errors import DataLoss, Forbidden, Invalid, NotFound, StepflowError, Unauthenticated
from stepflow.store.protocol import StoreCompacted, StoreUnavailable

if TYPE_CHECKING:
    from grpc import aio

_INVALID = {
    "duplicate key given in txn request": "DUPLICATE_KEY",
    "too many operations in txn request": "TXN_TOO_MANY_OPS",
    "request is too large": "TXN_TOO_LARGE",
    "key is not provided": "EMPTY_KEY",
    "key not found": "KEY_NOT_FOUND",
    "lease is provided": "LEASE_PROVIDED",
    "too large lease TTL": "LEASE_TTL_INVALID",
}
"""Reason of an INVALID_ARGUMENT, by a part of its text."""

_STALE_LOGIN = ("invalid auth token", "revision of auth store is old", "user name is empty")
"""Errors that a new login resolves."""


def explain(error: aio.AioRpcError, endpoint: str) -> StepflowError:
    """Translate an error of etcd for callers of the store.

    Only INVALID_ARGUMENT and errors that rule out an effect are definite. All others are StoreUnavailable: etcd may
    have executed the request, or may still execute it.
    """
    code, text = error.code(), error.details() or ""
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT if "authentication failed" in text:
            return Unauthenticated("STORE_LOGIN_REFUSED", f"etcd at {endpoint} refused user or password")
        case grpc.StatusCode.INVALID_ARGUMENT:
            reason = next((reason for part, reason in _INVALID.items() if part in text), "STORE_REFUSED")
            return Invalid(reason, f"etcd refused the request: {text}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "message larger than max" in text:
            return Invalid("TXN_TOO_LARGE", f"etcd refused the request: {text}; see --max-request-bytes")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "space exceeded" in text:
            return StoreUnavailable("STORE_FULL", f"etcd at {endpoint} is full and takes no writes")

        case grpc.StatusCode.NOT_FOUND if "lease not found" in text:
            return NotFound("LEASE_GONE", "the lease has ended")
        case grpc.StatusCode.OUT_OF_RANGE if "compacted" in text:
            return StoreCompacted("STORE_COMPACTED", "etcd has no such old revision any more")
        case grpc.StatusCode.OUT_OF_RANGE if "future" in text:
            return Invalid("REVISION_IN_FUTURE", "etcd has no such revision yet")

        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated("STORE_LOGIN_REFUSED", f"etcd at {endpoint} refused the login: {text}")
        case grpc.StatusCode.PERMISSION_DENIED:
            return Forbidden("STORE_FORBIDDEN", f"etcd at {endpoint} does not permit this user's request")
        case grpc.StatusCode.DATA_LOSS:
            return DataLoss("STORE_CORRUPT", f"etcd at {endpoint} reports damaged data: {text}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return StoreUnavailable("STORE_TIMEOUT", f"etcd at {endpoint} did not answer in time")

        case _:
            return StoreUnavailable("STORE_UNAVAILABLE", f"etcd at {endpoint}: {code.name}: {text}")


def needs_login(text: str) -> bool:
    """Return True if etcd's text asks for another token."""
    return any(part in text for part in _STALE_LOGIN)


def is_stale_login(error: aio.AioRpcError) -> bool:
    """Return True if a call failed only because its token is stale."""
    return error.code() in (
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
    ) and needs_login(error.details() or "")


__all__ = ["explain", "is_stale_login", "needs_login"]
