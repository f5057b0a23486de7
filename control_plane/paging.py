"""Pages of the API's lists: sizes and tokens.

A page token names the position where the next page begins. Clients return tokens unchanged; each is checked on receipt.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

import msgspec

from stepflow.errors import Invalid

_T = TypeVar("_T")

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000

PAGE_BYTES_MAX = 1024 * 1024
"""A page ends with the result that reaches this size. Most clients receive 4 MiB by default."""


def page_size(requested: int) -> int:
    """Return the number of entries of a page. `requested`: 0 for the default."""
    return min(requested, PAGE_SIZE_MAX) if requested else PAGE_SIZE_DEFAULT


def write_token(position: Any) -> str:
    """Return the opaque token of a position, a value that msgspec encodes."""
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def read_token(token: str, shape: type[_T]) -> _T | None:
    """Return the position of a page token; None for the empty token. Raises: Invalid `PAGE_TOKEN_INVALID`."""
    if not token:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=shape)
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        raise Invalid("PAGE_TOKEN_INVALID", "this page token does not come from this list") from None


__all__ = ["PAGE_BYTES_MAX", "PAGE_SIZE_MAX", "page_size", "read_token", "write_token"]
