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

ANYWHERE_CHARS_MIN = 4
"""Shorter values occur by chance within other words and numbers; they are replaced only where they stand alone."""

_DELIMITERS = frozenset("\"'`()[]{}<>,;:=|/&?")


class KnownSecrets:
    """Secret values, and their removal from texts. False if there are none.

    A value is found verbatim, as it is written inside JSON and in a URL, and by each of its lines if it has several. A
    value of fewer than `ANYWHERE_CHARS_MIN` characters is found as a whole token. Blank values are no secrets.
    """

    __slots__ = ("_short", "_spellings", "chars_max")

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._spellings: list[str] = []
        """Longest first: one value may contain another."""
        self._short: list[str] = []
        """Spellings of short values, longest first."""
        self.chars_max = 0
        """Length of the longest spelling."""
        self.add(values)

    def __bool__(self) -> bool:
        return bool(self._spellings or self._short)

    def add(self, values: Iterable[str]) -> None:
        found, short = set(self._spellings), set(self._short)
        for value in values:
            if value.strip():
                (found if len(value) >= ANYWHERE_CHARS_MIN else short).update(_spellings(value))

        self._spellings, self._short = longest_first(found), longest_first(short)
        self.chars_max = max(
            (len(spellings[0]) for spellings in (self._spellings, self._short) if spellings), default=0
        )

    def join(self, other: KnownSecrets) -> None:
        """Add the values of another set."""
        self._spellings = longest_first({*self._spellings, *other._spellings})
        self._short = longest_first({*self._short, *other._short})
        self.chars_max = max(self.chars_max, other.chars_max)

    def text(self, text: str) -> str:
        """Return a text with every secret replaced by `[REDACTED]`."""
        text = redact_values(text, self._spellings)
        for secret in self._short:
            text = _redact_token(text, secret)
        return text

    def json(self, raw: bytes) -> bytes:
        """Return JSON text with every secret replaced inside its strings, and numbers that are secrets by a string."""
        if not self or not raw:
            return raw
        return _JSON_SCALAR.sub(self._scalar, raw.decode("utf-8", "replace")).encode("utf-8", "replace")

    def _scalar(self, found: re.Match[str]) -> str:
        token = found.group()
        if token[0] != '"':
            return f'"{REDACTED}"' if token in self._spellings or token in self._short else token
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


def _redact_token(text: str, secret: str) -> str:
    """Replace a short secret where it is not a part of a longer word or number."""
    parts: list[str] = []
    done = start = 0
    while (at := text.find(secret, start)) >= 0:
        end = at + len(secret)
        before, after = text[max(0, at - 2) : at], text[end : end + 2]
        begins = _is_escape(before) or not _continues(before[::-1], secret[0])
        start = at + 1
        if begins and not _continues(after, secret[-1]):
            parts += (text[done:at], REDACTED)
            done = start = end
    return "".join((*parts, text[done:])) if parts else text


def _continues(neighbours: str, edge: str) -> bool:
    """Return True if the token with the character `edge` at its end goes on with `neighbours`, nearest first."""
    nearest, next_one = neighbours[:1], neighbours[1:]
    if not (edge.isalnum() or edge == "_"):
        return bool(nearest) and not (nearest.isspace() or nearest in _DELIMITERS)
    return nearest.isalnum() or nearest == "_" or (nearest == "." and edge.isdigit() and next_one.isdigit())


def _is_escape(text: str) -> bool:
    """Return True for an escape such as `\\n` in quoted JSON: the letter does not belong to a word."""
    return len(text) == 2 and text[0] == "\\" and text[1] in "bfnrt"


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
