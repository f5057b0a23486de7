"""Text to plain JSON trees, with places: the one door through which people's files come in.

YAML is read as YAML 1.2 with the core schema, so that it maps onto JSON: `yes`, `on` and dates are strings, `010` is
ten, `0o10` eight, there are no sexagesimal numbers. Promises about every `Tree.value`:
- only null, booleans, integers of any size, finite floats, strings, lists and dicts with string keys;
- nested at most `JSON_DEPTH_MAX`; aliases share their subtree, and what they stand for together is bounded;
- every error is a `DocumentInvalid` with line and column, both counted from 1.

`<<` merges a mapping (or a list of them) into the one it stands in; own members win and come first. In YAML a
repeated key is refused; in JSON the last one counts, as everywhere else in the mesh.

Deliberately absent: tags beyond those of JSON's types, several documents in one file, locations kept in memory (they
are found by reading the text a second time when an error needs one).
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stepflow import codec
from stepflow.errors import Invalid
from stepflow.flow.paths import Part, shown

if TYPE_CHECKING:
    from yaml.events import AliasEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

Format = Literal["yaml", "json"]
Place = tuple[Part, ...]

ALIAS_SIZE_MAX = 4 * 1024 * 1024
"""Characters and nodes that all aliases of a document may stand for together (a few lines can mean gigabytes)."""

INTEGER_DIGITS_MAX = 4_000
"""CPython refuses to convert more than 4,300 digits."""


class DocumentInvalid(Invalid):
    """A text or what it says is not acceptable. `line` and `column` count from 1; 0 when there is no text."""

    def __init__(
        self, reason: str, problem: str, *, source: str, line: int = 0, column: int = 0, field: str = ""
    ) -> None:
        place = f"{source}:{line}:{column}" if line else source
        named = f"{field}: {problem}" if field else problem
        super().__init__(reason, f"{place}: {named}", source=source, line=line, column=column, field=field)
        self.problem = problem
        self.source = source
        self.line = line
        self.column = column
        self.field = field


class ComplexKey(str):
    """A mapping key that is not a string, as compact JSON text: `{a: 1}` is `ComplexKey('{"a":1}')`."""

    __slots__ = ()


@dataclass(slots=True)
class Tree:
    """A checked tree with the text that it came from. Parts may be shared: do not change `value`."""

    value: Any
    source: str
    text: str = field(repr=False)
    format: Format
    _places: dict[Place, tuple[int, int]] | None = field(default=None, repr=False)

    def locate(self, place: Place) -> tuple[int, int] | None:
        """Return line and column (from 1) of a member's key or an element; None for what aliases brought."""
        if self._places is None:
            self._places = _find_places(self.text, self.format)
        return self._places.get(place)

    def nearest(self, place: Place) -> tuple[int, int]:
        """Return line and column of `place`, or of the closest thing around it that has one."""
        while place:
            if found := self.locate(place):
                return found
            place = place[:-1]
        return self.locate(()) or (1, 1)


def parse_tree(
    text: bytes | str,
    *,
    source: str,
    format: Format,
    complex_keys: bool = False,
    bytes_max: int = codec.PAYLOAD_BYTES_MAX,
) -> Tree:
    """Read a document. `source` is what errors call it. With `complex_keys`, YAML keys may be any JSON value.

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
        value = _YamlReader(source, complex_keys=complex_keys).read(unicode_text)
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
        line, column = _line_and_column(str(text), error.start)
        raise DocumentInvalid(
            "TEXT_NOT_UTF8", "holds half of a surrogate pair", source=source, line=line, column=column
        ) from None
    return text.removeprefix("\ufeff")


def _line_and_column(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


# --- JSON --------------------------------------------------------------------------------------------------------

_BYTE = re.compile(r"^(.*?)(?: \(byte ([0-9]+)\))?$", re.DOTALL)


def _parse_json(text: str, source: str) -> Any:
    data = text.encode()
    try:
        # The size was checked above, and may be larger here than what may travel.
        return codec.parse(data, bytes_max=len(data))
    except Invalid as error:
        message = error.message.partition(" is not valid JSON: ")[2] or error.message
        found = _BYTE.match(message)
        assert found
        if found[2]:
            at = len(data[: int(found[2])].decode(errors="ignore"))
        elif "truncated" in message:
            at = len(text.rstrip())
        else:
            raise DocumentInvalid(error.reason, f"is not valid JSON: {message}", source=source) from None
        line, column = _line_and_column(text, at)
        problem = f"is not valid JSON: {found[1].removeprefix('JSON is malformed: ')}"
        raise DocumentInvalid(error.reason, problem, source=source, line=line, column=column) from None


# --- YAML --------------------------------------------------------------------------------------------------------

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBER_STARTS = frozenset("-+.0123456789")
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS: dict[str, type] = {"null": type(None), "bool": bool, "int": int, "float": float}
_COLLECTION_TAGS = {None, "!", _TAG + "map", _TAG + "seq"}

_UNSET: Any = object()
_MERGE: Any = object()


class _Frame:
    """A mapping or sequence that is being read."""

    __slots__ = ("anchor", "event", "height", "is_map", "key", "key_event", "merged", "path", "size", "value")

    def __init__(self, value: Any, event: NodeEvent, path: Place) -> None:
        self.value = value
        self.is_map = isinstance(value, dict)
        self.key: Any = _UNSET
        self.key_event: Event = event
        self.merged: list[dict[str, Any]] | None = None
        self.anchor = event.anchor
        self.event = event
        self.path = path
        self.size = 1
        self.height = 1


class _YamlReader:
    """Builds one document from libyaml's events, without recursion: the depth is ours to limit."""

    def __init__(
        self, source: str, *, complex_keys: bool = False, places: dict[Place, tuple[int, int]] | None = None
    ) -> None:
        self._source = source
        self._complex_keys = complex_keys
        self._places = places
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int, int]] = {}
        self._alias_size = 0
        self._root: Any = None
        self._documents = 0

    def read(self, text: str) -> Any:
        import yaml

        handlers: dict[type, Any] = {
            yaml.ScalarEvent: self._scalar,
            yaml.MappingStartEvent: self._start,
            yaml.SequenceStartEvent: self._start,
            yaml.MappingEndEvent: self._end,
            yaml.SequenceEndEvent: self._end,
            yaml.AliasEvent: self._alias,
            yaml.DocumentStartEvent: self._document,
        }
        try:
            for event in yaml.parse(text, Loader=yaml.CLoader):
                if handle := handlers.get(type(event)):
                    handle(event)
        except yaml.MarkedYAMLError as error:
            line, column = _place_of(error.problem_mark or error.context_mark)
            problem = "is not valid YAML: " + " ".join(filter(None, (error.context, error.problem)))
            raise DocumentInvalid("YAML_INVALID", problem, source=self._source, line=line, column=column) from None
        except yaml.YAMLError as error:
            at = getattr(error, "position", None)
            line, column = (1, 1) if at is None else _line_and_column(text, at)
            problem = f"is not valid YAML: {getattr(error, 'reason', error)}"
            raise DocumentInvalid("YAML_INVALID", problem, source=self._source, line=line, column=column) from None
        return self._root

    def _document(self, event: NodeEvent) -> None:
        self._documents += 1
        if self._documents > 1:
            raise self._invalid("a second document begins here; put it into a file of its own", event)

    def _scalar(self, event: ScalarEvent) -> None:
        value = self._resolve(event)
        if event.anchor:
            self._anchors[event.anchor] = (value, 1 + len(event.value), 0)
        if value == "<<" and event.implicit[0] and self._expects_key():
            value = _MERGE
        self._add(value, event, 1 + len(event.value), 0)

    def _alias(self, event: AliasEvent) -> None:
        known = self._anchors.get(event.anchor or "")
        if known is None:
            inside = any(frame.anchor == event.anchor for frame in self._stack)
            problem = "stands for something that contains it" if inside else "has no anchor before it"
            raise self._invalid(f"alias *{shown(event.anchor or '')} {problem}", event)
        value, size, height = known
        self._alias_size += size
        if self._alias_size > ALIAS_SIZE_MAX:
            raise self._invalid("aliases stand for more than a document may hold", event)
        if len(self._stack) + height > codec.JSON_DEPTH_MAX:
            raise self._too_deep(event)
        self._add(value, event, size, height)

    def _start(self, event: CollectionStartEvent) -> None:
        if event.tag not in _COLLECTION_TAGS:
            raise self._unknown_tag(event)
        if len(self._stack) >= codec.JSON_DEPTH_MAX:
            raise self._too_deep(event)
        value: Any = {} if type(event).__name__ == "MappingStartEvent" else []
        self._stack.append(_Frame(value, event, self._place_of_next()))

    def _end(self, _: NodeEvent) -> None:
        frame = self._stack.pop()
        for merged in frame.merged or ():
            for key, value in merged.items():
                frame.value.setdefault(key, value)
        if frame.anchor:
            self._anchors[frame.anchor] = (frame.value, frame.size, frame.height)
        self._add(frame.value, frame.event, frame.size, frame.height)

    def _add(self, value: Any, event: Event, size: int, height: int) -> None:
        if not self._stack:
            self._root = value
            self._record((), event)
            return
        frame = self._stack[-1]
        frame.size += size
        frame.height = max(frame.height, height + 1)
        if not frame.is_map:
            if self._places is not None:
                self._record((*frame.path, len(frame.value)), event)
            frame.value.append(value)
        elif frame.key is _UNSET:
            frame.key, frame.key_event = self._as_key(value, event), event
        else:
            self._add_member(frame, value, event)
            frame.key = _UNSET

    def _add_member(self, frame: _Frame, value: Any, event: Event) -> None:
        if frame.key is _MERGE:
            merged = value if isinstance(value, list) else [value]
            if not all(isinstance(one, dict) for one in merged):
                raise self._invalid("`<<` merges a mapping or a list of mappings; quote it to use it as a key", event)
            frame.merged = (frame.merged or []) + merged
            return
        if frame.key in frame.value:
            raise self._invalid(f"key `{shown(frame.key)}` is given twice", frame.key_event)
        if self._places is not None:
            self._record((*frame.path, frame.key), frame.key_event)
        frame.value[frame.key] = value

    def _as_key(self, value: Any, event: Event) -> Any:
        if value is _MERGE or type(value) is str:
            return value
        if self._complex_keys:
            return ComplexKey(codec.encode(value).decode())
        problem = "a key must be a string; put it in quotes"
        if isinstance(value, (dict, list)):
            problem = "a key must be a string, not a mapping or a list"
        raise self._invalid(problem, event)

    def _resolve(self, event: ScalarEvent) -> Any:
        """Give a scalar its JSON value: by its looks when plain, else by its tag."""
        if event.implicit[0] and event.tag is None:
            return self._plain(event)
        if event.implicit[1] or event.tag in ("!", _TAG + "str"):
            return event.value
        wanted_name = str(event.tag).removeprefix(_TAG)
        wanted = _SCALAR_TAGS.get(wanted_name)
        if wanted is None:
            raise self._unknown_tag(event)
        value = self._plain(event)
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise self._invalid(f"the value is not of the type that its tag `!!{wanted_name}` says", event)
        return value

    def _plain(self, event: ScalarEvent) -> Any:
        text = event.value
        if text in _WORDS:
            return _WORDS[text]
        if text[0] not in _NUMBER_STARTS:
            return text
        if _INTEGER.fullmatch(text):
            if len(text) > INTEGER_DIGITS_MAX:
                raise self._invalid("the number has too many digits; quote it to use it as a string", event)
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text, base)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if number - number == 0:  # finite
                return number
        elif not _NOT_FINITE.fullmatch(text):
            return text
        raise self._invalid(f"`{text[:40]}` is no number that JSON can hold; quote it to use it as a string", event)

    def _expects_key(self) -> bool:
        return bool(self._stack) and self._stack[-1].is_map and self._stack[-1].key is _UNSET

    def _place_of_next(self) -> Place:
        if self._places is None or not self._stack:
            return ()
        frame = self._stack[-1]
        return (*frame.path, frame.key if frame.is_map else len(frame.value))

    def _record(self, place: Place, event: Event) -> None:
        if self._places is not None:
            self._places[place] = _place_of(event.start_mark)

    def _unknown_tag(self, event: ScalarEvent | CollectionStartEvent) -> DocumentInvalid:
        tag = str(event.tag).replace(_TAG, "!!")
        return self._invalid(f"tag `{shown(tag)}` has no meaning in JSON", event)

    def _too_deep(self, event: Event) -> DocumentInvalid:
        error = self._invalid(f"is nested deeper than {codec.JSON_DEPTH_MAX} levels", event)
        error.reason = "JSON_TOO_DEEP"
        return error

    def _invalid(self, problem: str, event: Event) -> DocumentInvalid:
        line, column = _place_of(event.start_mark)
        return DocumentInvalid("YAML_INVALID", problem, source=self._source, line=line, column=column)


def _place_of(mark: Any) -> tuple[int, int]:
    """Return line and column, from 1, of a mark of the parser (its types say that it may be None)."""
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


_JSON_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)")


def _find_places(text: str, format: Format) -> dict[Place, tuple[int, int]]:
    """Find where everything stands. Best effort for JSON, which is read as YAML with escapes and tabs blanked."""
    places: dict[Place, tuple[int, int]] = {}
    if format == "json":
        text = _JSON_ESCAPE.sub(lambda found: "x" * len(found[0]), text).replace("\t", " ")
    with contextlib.suppress(DocumentInvalid):  # what was found up to there still helps
        _YamlReader("", complex_keys=True, places=places).read(text)
    return places


def describe(value: Any) -> str:
    """Name the JSON type of `value` for a message."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return names.get(type(value), "a string")


__all__ = [
    "ComplexKey",
    "DocumentInvalid",
    "Format",
    "Place",
    "Tree",
    "describe",
    "parse_tree",
]
