"""Durations in the notation of users: `500ms`, `1.5s`, `2m`, `1h`, `1d`."""

from __future__ import annotations

import re

from stepflow.errors import Invalid
from stepflow.flow.source import describe

DURATION_MS_MAX = 2**32 - 1
"""49 days, the same bound as for back-offs."""

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(ms|s|m|h|d)", re.ASCII)
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

_FRACTION = r"(?:\.[0-9]{1,3})?"
_BELOW_1 = r"0?\.[0-9]{0,2}[1-9]"
_SECONDS = rf"(?:[1-9][0-9]{{0,5}}{_FRACTION}|{_BELOW_1}) ?s"
_MINUTES = rf"(?:[1-9][0-9]{{0,3}}{_FRACTION}|{_BELOW_1}) ?m"
_HOURS = rf"(?:[1-9][0-9]{{0,2}}{_FRACTION}|{_BELOW_1}) ?h"
_DAYS = rf"(?:[1-9]|[1-3][0-9]|4[0-8]){_FRACTION} ?d"
DURATION_PATTERN = rf"^(?:[1-9][0-9]{{0,8}} ?ms|{_SECONDS}|{_MINUTES}|{_HOURS}|{_DAYS})$"
"""Regular expression for JSON Schemas: durations up to 49 days, in the spellings that people use."""


def parse_duration_ms(text: object, max_ms: int = DURATION_MS_MAX) -> int:
    """Return a duration such as `500ms`, `1.5s`, `2m`, `1h` or `1d` in milliseconds, from 1 to `max_ms`.

    Raises:
        Invalid: DURATION_INVALID.
    """
    found = _DURATION.fullmatch(text.strip()) if isinstance(text, str) and len(text) <= 40 else None
    if found:
        duration_ms = float(found[1]) * _UNITS_MS[found[2]]
        if 1 <= duration_ms <= max_ms:
            return round(duration_ms)

    shown = f"`{text[:40]}`" if isinstance(text, str) else describe(text)
    raise Invalid(
        "DURATION_INVALID",
        "a duration is a positive number with a unit (`500ms`, `30s`, `5m`, `1h`, `1d`; "
        f"at most {max_ms // _UNITS_MS['d']:,} days), not {shown}",
    )
