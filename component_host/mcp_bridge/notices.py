"""Notifications of a server, recognised before they are decoded.

The SDK validates each notification and starts two tasks for it. Progress and announced changes are therefore thinned
(`progress_gate`), and notices that this client does not use, such as log messages, are skipped. Pure, without the SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Hashable

NOTICE_BYTES_MAX = 64 * 1024
"""Longest message that is looked at before decoding; longer ones are always decoded."""

PROGRESS = "notifications/progress"

_CHANGES = frozenset(
    {
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
    }
)
_NEEDED = frozenset({"notifications/cancelled", "notifications/subscriptions/acknowledged"})


class _Progress(msgspec.Struct):
    token: int | str | None = msgspec.field(default=None, name="progressToken")


class _Notice(msgspec.Struct):
    method: str
    params: _Progress | None = None
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Notice).decode


def notice_key(text: bytes) -> Hashable | Literal[False] | None:
    """Return the key of a notification: of several with one key, the latest replaces the others.

    None: not such a notification, so it must be decoded. False: this client does not use it.
    """
    if len(text) > NOTICE_BYTES_MAX or b'"notifications/' not in text:
        return None
    try:
        notice = _decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    if notice.id is not msgspec.UNSET or notice.method in _NEEDED:
        return None

    if notice.method == PROGRESS:
        token = notice.params.token if notice.params else None
        return False if token is None else progress_key(token)
    if notice.method in _CHANGES:
        return notice.method
    return False if notice.method.startswith("notifications/") else None


def progress_key(request_id: int | str) -> Hashable:
    """Return the key of the progress of a request; its id is the token."""
    return ("progress", str(request_id))


__all__ = ["notice_key", "progress_key"]
