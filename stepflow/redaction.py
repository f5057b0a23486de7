"""Removal of known secrets from texts: values by replacement, credentials of URLs by their position.

Which values are secret:
- values of a run that its flow marks with `is_secret` (`stepflow.flow.secrets` finds them);
- values that a process took from its environment, by `is_secret_value` (`stepflow.telemetry` keeps them).

Pure. The search for text that merely looks secret (bearer tokens, names of fields) is `stepflow.telemetry`'s.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

REDACTED = "[REDACTED]"

ENVIRONMENT_CHARS_MIN = 8
"""Shorter values of the environment are ordinary words and are not replaced."""

MARKED_CHARS_MIN = 4
"""Shorter values occur by chance in any text: to replace them would make it unreadable and reveal the value."""


class KnownSecrets:
    """Secret values, and their removal from texts. False if there are none.

    A value is found verbatim, as it is written inside JSON and in a URL, and by each of its lines if it has several.
    """

    __slots__ = ("_spellings", "chars_max")

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._spellings: list[str] = []
        """Longest first: one value may contain another."""
        self.chars_max = 0
        """Length of the longest spelling."""
        self.add(values)

    def __bool__(self) -> bool:
        return bool(self._spellings)

    def add(self, values: Iterable[str]) -> None:
        """Add secrets. Values under `MARKED_CHARS_MIN` are ignored."""
        found = set(self._spellings)
        for value in values:
            if len(value) >= MARKED_CHARS_MIN:
                found |= _spellings(value)

        self._spellings = longest_first(found)
        self.chars_max = len(self._spellings[0]) if self._spellings else 0

    def text(self, text: str) -> str:
        """Return a text with every secret replaced by `[REDACTED]`."""
        return redact_values(text, self._spellings)

    def json(self, raw: bytes) -> bytes:
        """Return JSON text with every secret replaced inside its strings, and numbers that are secrets by a string."""
        if not self or not raw:
            return raw
        return _JSON_SCALAR.sub(self._scalar, raw.decode("utf-8", "replace")).encode("utf-8", "replace")

    def _scalar(self, found: re.Match[str]) -> str:
        token = found.group()
        if token[0] != '"':
            return f'"{REDACTED}"' if token in self._spellings else token
        try:
            plain: str = json.loads(token, strict=False)
        except ValueError:
            return self.text(token)
        shown = self.text(plain)
        return token if shown == plain else json.dumps(shown, ensure_ascii=False)


_JSON_SCALAR = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*')


def _spellings(value: str) -> set[str]:
    lines = {line.strip() for line in value.splitlines()} if "\n" in value else set()
    plain = {value, *(line for line in lines if len(line) >= ENVIRONMENT_CHARS_MIN)}
    found = set(plain)
    for text in plain:
        found |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], _percent_encoded(text)}
    return found


def _percent_encoded(text: str) -> str:
    octets = text.encode("utf-8", "replace")
    return "".join(chr(octet) if chr(octet) in _UNRESERVED else f"%{octet:02X}" for octet in octets)


_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def is_secret_value(value: str) -> bool:
    """Return True if a value of the environment must not be shown: 8 or more characters, no number and no boolean."""
    plain = value.strip()
    if len(plain) < ENVIRONMENT_CHARS_MIN or plain.lower() in ("true", "false"):
        return False
    try:
        float(plain)
    except ValueError:
        return True
    return False


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


__all__ = [
    "ENVIRONMENT_CHARS_MIN",
    "REDACTED",
    "KnownSecrets",
    "is_secret_value",
    "longest_first",
    "redact_values",
    "url_without_credentials",
]
