"""Run ids: UUIDv7, so that runs sort by age. Sub-runs have UUIDv5s derived from their position in the root run."""

from __future__ import annotations

import secrets
import time
from uuid import UUID

from stepflow.errors import Invalid


def new_run_id() -> str:
    """Return a new UUIDv7 (RFC 9562): 48 bits of milliseconds, then version, variant and 74 random bits."""
    millis = time.time_ns() // 1_000_000
    value = (millis & (2**48 - 1)) << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)
    return str(UUID(int=value))


def begun_at_ms(run_id: str) -> int:
    """Return when a run id was made, in milliseconds since 1970; 0 for another version of UUID than 7."""
    parsed = UUID(run_id)
    return parsed.int >> 80 if parsed.version == 7 else 0


def parse_run_id(text: str) -> str:
    """Return a run id in canonical form. Raises: Invalid `RUN_ID_INVALID`."""
    return parse_uuid(text, "RUN_ID_INVALID", "run id")


def parse_uuid(text: str, reason: str, what: str) -> str:
    """Return a UUID in canonical form. Raises: Invalid with `reason`; `what` names the id in its text.

    The nil UUID is refused: it stands for an id that was never set, and every such request would be the same one.
    """
    try:
        parsed = UUID(text)
    except ValueError:
        raise Invalid(reason, f"{text[:80]!r} is not a {what} (a UUID)") from None
    if not parsed.int:
        raise Invalid(reason, f"the nil UUID is not a {what}; give a UUID of your own, or none")
    return str(parsed)
