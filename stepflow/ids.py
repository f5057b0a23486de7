"""Run ids: UUIDv7, so that runs sort by age. Sub-runs have UUIDv5s derived from their position in the root run.

People name a run by its id, by the id's end or a unique beginning, or as `last` (`is_named`, `only_one`).
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING
from uuid import UUID

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

LAST = "last"
"""Names the newest run."""

END_CHARS_MIN = 4
"""A shorter text is no end of an id."""

CANDIDATES_SHOWN = 5
"""Runs that the error about an ambiguous name has."""


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


def is_named(run_id: str, text: str) -> bool:
    """Return True if the text is a beginning of the id, or an end of it."""
    text = text.lower()
    return bool(text) and (run_id.startswith(text) or (len(text) >= END_CHARS_MIN and run_id.endswith(text)))


def only_one(found: Sequence[str], count: int, text: str) -> str:
    """Return the only run that a text names. Raises: Invalid `RUN_ID_AMBIGUOUS`, which names some of `found`."""
    if count == 1:
        return found[0]
    shown = ", ".join(found[:CANDIDATES_SHOWN]) + (", …" if count > CANDIDATES_SHOWN else "")
    raise Invalid(
        "RUN_ID_AMBIGUOUS",
        f"{count:,} run ids begin or end with {text[:80]}: {shown}; give more of the id, or its end",
    )
