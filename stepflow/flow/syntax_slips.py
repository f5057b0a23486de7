"""Own words for common slips in the syntax of YAML and JSON, in place of the words of the parsers.

Each function takes the text and the place that the parser complains about, and returns a sentence about the document,
or None if the parser's words are the best ones. Used only after an error. Pure.
"""

from __future__ import annotations

import re

_INDENT = re.compile(r"[ \t]*")
_PLAIN_COLON = re.compile(r"^\s*(?:- )*[^\s'\"\[{#][^'\"\[{#]*?: +[^\s'\"\[{|>&*!#][^'\"]*:(?: |$)")
_BRACES = re.compile(r"\{\{\s*[\w.$-]+\s*\}\}")
_RESERVED = "@`%"
_TEMPLATE = "`{{ … }}` is no template here; write `{ $input: path }` or `{ $step: id, path: path }`"


def yaml_problem(text: str, line: int, column: int) -> str | None:
    """Return a sentence about the YAML around `line` and `column`, both 1-based."""
    lines = text.split("\n")
    found = lines[line - 1] if line <= len(lines) else ""
    at = found[column - 1 : column]

    if at == "\t" or "\t" in _INDENT.match(found).group():  # type: ignore[union-attr]  # it matches the empty text
        return "a tab stands where YAML takes spaces only; indent with spaces"
    if _BRACES.search(found):
        return f"is not valid YAML: {_TEMPLATE}"
    if at and at in _RESERVED:
        return f"is not valid YAML: a text that begins with `{at}` needs quotes"
    if at == "*" or found[column - 2 : column - 1] == "*":
        return "is not valid YAML: a text that begins with `*` needs quotes"
    if _PLAIN_COLON.match(found):
        return "is not valid YAML: a text that holds `: ` needs quotes"
    return None


def yaml_key_problem(text: str, line: int) -> str | None:
    """Return a sentence about a mapping that stands as a key in `line`, 1-based."""
    return _TEMPLATE if _BRACES.search(text.split("\n")[line - 1]) else None


def json_problem(text: str, at: int) -> str | None:
    """Return a sentence about the JSON around the index `at`."""
    rest = text[max(at - 1, 0) :]
    if re.match(r".?(?://|/\*|#)", rest, re.DOTALL) and text[max(at - 1, 0) : at + 2].strip():
        return "JSON has no comments; remove this one, or write YAML (`.yaml`), which reads JSON and has comments"
    if re.match(r".?'", rest, re.DOTALL):
        return 'JSON takes double quotes: write `"text"`'
    if word := re.match(r"(?:True|False|None)\b", rest) or re.match(r"(?:True|False|None)\b", rest[1:]):
        written = {"True": "true", "False": "false", "None": "null"}[word.group()]
        return f"is not valid JSON: write `{written}`"
    return None
