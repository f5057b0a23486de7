"""Removal of known secrets from texts: values by replacement, credentials of URLs by their position.

Pure. The search for text that merely looks secret (bearer tokens, names of fields) is `stepflow.telemetry`'s.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

REDACTED = "[REDACTED]"


def longest_first(secrets: Iterable[str]) -> list[str]:
    """Return secrets in the order for `redact_values`: one may contain another."""
    return sorted(secrets, key=len, reverse=True)


def redact_values(text: str, secrets: Iterable[str]) -> str:
    """Replace each secret in a text by `[REDACTED]`. Secrets are not empty; see `longest_first`."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text


def url_without_credentials(url: str) -> str:
    """Return a URL without user, password, query and fragment: these hold keys and signatures."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0], count=1)


__all__ = ["REDACTED", "longest_first", "redact_values", "url_without_credentials"]
