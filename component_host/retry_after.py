"""The pause that an HTTP service asks for before the next request.

Source: RFC 9110, section 10.2.3 (`Retry-After`, seconds or a date); `retry-after-ms` is OpenAI's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stepflow.retry import RETRY_AFTER_MS_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping


def retry_after_ms(headers: Mapping[str, str]) -> int | None:
    """Return the pause in milliseconds, at most `RETRY_AFTER_MS_MAX`; None without a readable one."""
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", 1_000)):
        asked = headers.get(name, "").strip()
        if not asked:
            continue

        try:
            pause_ms = float(asked) * unit_ms
        except ValueError:
            pause_ms = _until(asked)
        if pause_ms >= 0:  # False for not a number
            return int(min(pause_ms, RETRY_AFTER_MS_MAX))
    return None


def _until(date: str) -> float:
    """Return the milliseconds until a date of HTTP; not a number if it is none."""
    from email.utils import parsedate_to_datetime  # rare, and 3 ms of each start

    try:
        return max(0.0, (parsedate_to_datetime(date).timestamp() - time.time()) * 1_000)
    except (ValueError, OverflowError):
        return float("nan")


__all__ = ["retry_after_ms"]
