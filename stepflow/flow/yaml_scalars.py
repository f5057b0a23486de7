"""Scalars of YAML 1.2's core schema as JSON values."""

from __future__ import annotations

import re
from typing import Any

from stepflow.json_problems import shown, vanishes

INTEGER_DIGITS_MAX = 4_000
"""CPython refuses to convert more than 4,300 digits."""

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
"""A postal code or a phone number, not a number: text, as in upstream's reader."""

_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBER_STARTS = frozenset("-+.0123456789")
_SCALAR_TAGS: dict[str, type] = {"null": type(None), "bool": bool, "int": int, "float": float}

TAG = "tag:yaml.org,2002:"
"""Prefix of YAML's own tags, `!!` in documents."""


class ScalarInvalid(Exception):
    """A scalar without a JSON value; the reader adds the location."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


def resolve(text: str, tag: str | None, *, plain: bool, quoted: bool) -> Any:
    """Return the JSON value of a scalar: by form for a plain scalar, by tag otherwise.

    `plain` and `quoted`: the tag may be omitted in a plain or a quoted spelling. Raises: ScalarInvalid.
    """
    if plain and tag is None:
        return _plain(text)
    if quoted or tag in ("!", TAG + "str"):
        return text

    wanted_name = str(tag).removeprefix(TAG)
    wanted = _SCALAR_TAGS.get(wanted_name)
    if wanted is None:
        raise ScalarInvalid(unknown_tag(tag))

    value = _plain(text)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ScalarInvalid(f"the value is not of the type of its tag `!!{wanted_name}`")
    return value


def reads_as_text(text: str) -> bool:
    """Return True if the plain scalar `text` is read as that string."""
    try:
        return bool(_plain(text) == text)
    except ScalarInvalid:
        return False


def unknown_tag(tag: str | None) -> str:
    """Return the problem of a tag outside JSON's types."""
    return f"tag `{shown(str(tag).replace(TAG, '!!'))}` has no meaning in JSON"


def _plain(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBER_STARTS:
        return text

    if _LEADING_ZERO.fullmatch(text):
        return text

    if _INTEGER.fullmatch(text):
        if len(text) > INTEGER_DIGITS_MAX:
            raise ScalarInvalid("the number has too many digits; quote it to use it as a string")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)

    if _FLOAT.fullmatch(text):
        number = float(text)
        if number - number == 0 and not vanishes(text):  # finite
            return number
    elif not _NOT_FINITE.fullmatch(text):
        return text
    raise ScalarInvalid(f"`{text[:40]}` is not a number that JSON can hold; quote it to use it as a string")
