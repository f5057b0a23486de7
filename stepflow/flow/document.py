"""Documents of users as plain JSON trees, with the location of each value for error messages.

YAML is read as YAML 1.2 with the core schema, so that it maps onto JSON: `yes`, `on` and dates are strings, `0o10` is
eight, there are no sexagesimal numbers. Unlike the core schema, and like upstream, digits after a leading zero (`010`,
a postal code) are a string. Promises about every `Tree.value`:
- only null, booleans, integers of any size, finite floats, strings, lists and dicts with string keys;
- nested at most `JSON_DEPTH_MAX`; aliases share a subtree, and the total size of the expansion is bounded;
- every error is a `DocumentInvalid` with line and column, both 1-based.

`<<` merges a mapping (or a list of mappings) into its parent; own members win and come first. YAML with a repeated
key is rejected; in JSON the last value counts, as everywhere else in the mesh.

Limits: only the tags of JSON's types, a single document per file. Locations are not kept: for an error, the text is
read a second time.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stepflow import codec
from stepflow.errors import Invalid
from stepflow.flow.source import DocumentInvalid, line_and_column
from stepflow.flow.syntax_slips import json_problem
from stepflow.flow.yaml_reader import YamlReader
from stepflow.json_problems import first_lost, json_path

if TYPE_CHECKING:
    from stepflow.flow.source import DocumentPath, Location

Format = Literal["yaml", "json"]


@dataclass(slots=True)
class Tree:
    """A checked tree and the original text. Parts may be shared: do not change `value`."""

    value: Any
    source: str
    text: str = field(repr=False)
    format: Format
    _locations: dict[DocumentPath, Location] | None = field(default=None, repr=False)

    def locate(self, doc_path: DocumentPath) -> Location | None:
        """Return the location of a member's key or of an element; None inside an alias."""
        if self._locations is None:
            self._locations = _find_locations(self.text, self.format)
        return self._locations.get(doc_path)

    def nearest(self, doc_path: DocumentPath) -> Location:
        """Return the location of `doc_path`, or of the closest located value around `doc_path`."""
        while doc_path:
            if found := self.locate(doc_path):
                return found
            doc_path = doc_path[:-1]
        return self.locate(()) or (1, 1)


def parse_tree(
    text: bytes | str,
    *,
    source: str,
    format: Format,
    complex_keys: bool = False,
    bytes_max: int = codec.PAYLOAD_BYTES_MAX,
) -> Tree:
    """Read a document. Errors name `source`. With `complex_keys`, YAML keys may be any JSON value.

    Raises:
        DocumentInvalid: YAML_INVALID, JSON_INVALID, JSON_TOO_DEEP, TEXT_NOT_UTF8 or PAYLOAD_TOO_LARGE.
    """
    if len(text) > bytes_max:
        problem = f"is {len(text):,} bytes; the limit is {bytes_max:,}"
        raise DocumentInvalid("PAYLOAD_TOO_LARGE", problem, source=source)

    unicode_text = _as_unicode(text, source)
    if format == "json":
        value = _parse_json(unicode_text, source)
    else:
        value = YamlReader(source, complex_keys=complex_keys).read(unicode_text)
    return Tree(value, source, unicode_text, format)


def _as_unicode(text: bytes | str, source: str) -> str:
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8-sig")
        text.encode()
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1  # type: ignore[arg-type]  # only bytes are decoded
        raise DocumentInvalid("TEXT_NOT_UTF8", "is not UTF-8 text", source=source, line=line, column=1) from None
    except UnicodeEncodeError as error:
        line, column = line_and_column(str(text), error.start)
        raise DocumentInvalid(
            "TEXT_NOT_UTF8", "holds half of a surrogate pair", source=source, line=line, column=column
        ) from None
    return text.removeprefix("\ufeff")


_BYTE = re.compile(r"^(.*?)(?: \(byte ([0-9]+)\))?$", re.DOTALL)


def _parse_json(text: str, source: str) -> Any:
    data = text.encode()
    try:
        # `parse_tree` has checked the size; its limit may exceed that of payloads.
        return codec.parse(data, bytes_max=len(data))
    except Invalid as error:
        if (lost := first_lost(text)) is not None:
            line, column = Tree(None, source, text, "json").nearest(lost.path)
            raise DocumentInvalid(
                error.reason, lost.problem, source=source, line=line, column=column, field=json_path(lost.path)
            ) from None

        message = error.message.partition(" is not valid JSON: ")[2] or error.message
        found = _BYTE.match(message)
        assert found

        if found[2]:
            at = len(data[: int(found[2])].decode(errors="ignore"))
        elif "truncated" in message:
            at = len(text.rstrip())
        else:
            raise DocumentInvalid(error.reason, f"is not valid JSON: {message}", source=source) from None

        line, column = line_and_column(text, at)
        words = f"is not valid JSON: {found[1].removeprefix('JSON is malformed: ')}"
        problem = json_problem(text, at) or words
        raise DocumentInvalid(error.reason, problem, source=source, line=line, column=column) from None


_JSON_ONLY = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)|[eE][-+]?[0-9]{3,}|[0-9]{200,}")
"""Escapes, and parts of numbers, that the reader of YAML refuses."""


def _find_locations(text: str, format: Format) -> dict[DocumentPath, Location]:
    """Locate every value. Best effort for JSON: read as YAML, with escapes, extreme numbers and tabs blanked."""
    locations: dict[DocumentPath, Location] = {}
    if format == "json":
        text = _JSON_ONLY.sub(lambda found: "x" * len(found[0]), text).replace("\t", " ")
    with contextlib.suppress(DocumentInvalid):  # the locations found up to an error still help
        YamlReader("", complex_keys=True, locations=locations).read(text)
    return locations
