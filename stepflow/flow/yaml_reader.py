"""YAML 1.2 with the core schema, built from libyaml's events into JSON trees, and the location of every value.

Iterative: the bound on the depth of a document is `JSON_DEPTH_MAX`, not the stack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow import codec
from stepflow.flow.source import DocumentInvalid, line_and_column
from stepflow.flow.syntax_slips import yaml_key_problem, yaml_problem
from stepflow.flow.yaml_scalars import TAG, ScalarInvalid, resolve, unknown_tag
from stepflow.json_problems import shown

if TYPE_CHECKING:
    from yaml import MarkedYAMLError
    from yaml.events import AliasEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

    from stepflow.flow.source import DocumentPath, Location

ALIAS_SIZE_MAX = 4 * 1024 * 1024
"""Total of characters and nodes in the expansion of all aliases (a few lines can mean gigabytes)."""

_COLLECTION_TAGS = {None, "!", TAG + "map", TAG + "seq"}

_TOO_DEEP = f"is nested deeper than {codec.JSON_DEPTH_MAX} levels"

_UNSET: Any = object()
_MERGE: Any = object()


class ComplexKey(str):
    """A mapping key other than a string, as compact JSON text: `{a: 1}` is `ComplexKey('{"a":1}')`."""

    __slots__ = ()


class _Frame:
    """An unfinished mapping or sequence."""

    __slots__ = ("anchor", "event", "height", "is_map", "key", "key_event", "merged", "path", "size", "value")

    def __init__(self, value: Any, event: NodeEvent, path: DocumentPath) -> None:
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


class YamlReader:
    """Reads a document. With `locations`, also records the location of every value there."""

    def __init__(
        self, source: str, *, complex_keys: bool = False, locations: dict[DocumentPath, Location] | None = None
    ) -> None:
        self._source = source
        self._complex_keys = complex_keys
        self._locations = locations
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int, int]] = {}
        self._alias_size = 0
        self._root: Any = None
        self._documents = 0
        self._text = ""

    def read(self, text: str) -> Any:
        """Return the tree of the text. Raises: DocumentInvalid."""
        import yaml

        self._text = text
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
            line, column = _location_of(error.problem_mark or error.context_mark)
            words = "is not valid YAML: " + " ".join(filter(None, (_context_of(error, line), error.problem)))
            problem = yaml_problem(text, line, column) or words
            raise DocumentInvalid("YAML_INVALID", problem, source=self._source, line=line, column=column) from None

        except yaml.YAMLError as error:
            at = getattr(error, "position", None)
            line, column = (1, 1) if at is None else line_and_column(text, at)
            problem = f"is not valid YAML: {getattr(error, 'reason', error)}"
            raise DocumentInvalid("YAML_INVALID", problem, source=self._source, line=line, column=column) from None

        return self._root

    def _document(self, event: NodeEvent) -> None:
        self._documents += 1
        if self._documents > 1:
            raise self._invalid("a second document begins here; put it into a file of its own", event)

    def _scalar(self, event: ScalarEvent) -> None:
        try:
            value = resolve(event.value, event.tag, plain=event.implicit[0], quoted=event.implicit[1])
        except ScalarInvalid as error:
            raise self._invalid(error.problem, event) from None

        if event.anchor:
            self._anchors[event.anchor] = (value, 1 + len(event.value), 0)
        if value == "<<" and event.implicit[0] and self._expects_key():
            value = _MERGE
        self._add(value, event, 1 + len(event.value), 0)

    def _alias(self, event: AliasEvent) -> None:
        known = self._anchors.get(event.anchor or "")
        if known is None:
            inside = any(frame.anchor == event.anchor for frame in self._stack)
            problem = (
                "refers to a value that contains it" if inside else "has no anchor before it; quote a text with `*`"
            )
            raise self._invalid(f"alias *{shown(event.anchor or '')} {problem}", event)

        value, size, height = known
        self._alias_size += size
        if self._alias_size > ALIAS_SIZE_MAX:
            raise self._invalid("aliases expand to more than a document may hold", event)
        if len(self._stack) + height > codec.JSON_DEPTH_MAX:
            raise self._invalid(_TOO_DEEP, event, reason="JSON_TOO_DEEP")
        self._add(value, event, size, height)

    def _start(self, event: CollectionStartEvent) -> None:
        if event.tag not in _COLLECTION_TAGS:
            raise self._invalid(unknown_tag(event.tag), event)
        if len(self._stack) >= codec.JSON_DEPTH_MAX:
            raise self._invalid(_TOO_DEEP, event, reason="JSON_TOO_DEEP")
        value: Any = {} if type(event).__name__ == "MappingStartEvent" else []
        self._stack.append(_Frame(value, event, self._path_of_next()))

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
            if self._locations is not None:
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
        if self._locations is not None:
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
            problem = yaml_key_problem(self._text, _location_of(event.start_mark)[0]) or problem
        raise self._invalid(problem, event)

    def _expects_key(self) -> bool:
        return bool(self._stack) and self._stack[-1].is_map and self._stack[-1].key is _UNSET

    def _path_of_next(self) -> DocumentPath:
        if self._locations is None or not self._stack:
            return ()
        frame = self._stack[-1]
        return (*frame.path, frame.key if frame.is_map else len(frame.value))

    def _record(self, path: DocumentPath, event: Event) -> None:
        if self._locations is not None:
            self._locations[path] = _location_of(event.start_mark)

    def _invalid(self, problem: str, event: Event, *, reason: str = "YAML_INVALID") -> DocumentInvalid:
        line, column = _location_of(event.start_mark)
        return DocumentInvalid(reason, problem, source=self._source, line=line, column=column)


def _context_of(error: MarkedYAMLError, line: int) -> str | None:
    """Return what the parser was reading. An open bracket or quote is noticed lines later: its own line is named."""
    context: str | None = error.context
    begun = _location_of(error.context_mark)[0]
    if not context or error.context_mark is None or begun == line or "block" in context:
        return context
    return f"{context} that begins on line {begun},"


def _location_of(mark: Any) -> Location:
    """Return the location of a mark of the parser (None according to its types, never in practice)."""
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)
