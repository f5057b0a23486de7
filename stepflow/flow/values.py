"""Values of expressions: whole texts, and texts composed of other values without a copy.

- `Json`: a text in memory. `Journaled`: one that an entry of the run's journal holds. `Stored`: one in the blob store.
- `Part`: the text of a value within a `Journaled` or `Stored` one.
- `Composed`: text pieces and values; it is joined only where the whole is needed, after its size is known.

Invariants:
- a `Composed` holds complete values where its own text has none, and shares them: memory grows with the number of
  pieces, never with their sizes;
- a value's `size` is known without its bytes, except of a blob of unknown length;
- a composed value has at most `PIECES_MAX` pieces and `JSON_DEPTH_MAX` levels of composition.

Pure: callers load the blobs (`unloaded`, `unloaded_at`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from stepflow.codec import JSON_DEPTH_MAX, Json, blob_id, decode, encode
from stepflow.flow.paths import MISSING, project

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stepflow.json_problems import Part as PathPart

REFERENCE_BYTES_MIN = 513
"""Shorter texts are copied: a reference would take as much room."""

PIECES_MAX = 1_000_000
"""Pieces of a composed value, nested ones included."""

SKELETON_PIECES_MAX = 10_000
"""Skeletons of values with more pieces are decoded again for each path."""

SHARE_MIN = 4
"""Of a stored value only parts of at least this share (1/n) are referred to."""

NULL_BYTES_MAX = 5
"""Length of `false`: only so short a value can be null or false."""

Value = bytes | Json
"""The text of a value of an expression, or the value itself."""


class Journaled(Json):
    """The result of a step, inline in the journal."""

    __slots__ = ("entry",)

    def __init__(self, raw: bytes, entry: int) -> None:
        super().__init__(raw)
        self.entry = entry
        """0-based number of the entry in the partition's journal."""


class Stored(Json):
    """A JSON value in the blob store; `raw` is empty until loaded."""

    __slots__ = ("blob", "blob_bytes", "pending")

    def __init__(self, blob: str, blob_bytes: int = 0) -> None:
        super().__init__(b"")
        self.blob = blob
        self.blob_bytes = blob_bytes
        """Length of the blob; 0 if unknown."""
        self.pending = False
        """True for a new value, loaded, until its blob is written."""

    @property
    def loaded(self) -> bool:
        return bool(self.raw)

    @property
    def size(self) -> int:
        return self.blob_bytes or len(self.raw)

    def load(self, raw: bytes) -> None:
        self.raw = raw
        self.blob_bytes = len(raw)

    def unload(self) -> None:
        self.__init__(self.blob, self.blob_bytes)  # type: ignore[misc]  # back to the state without bytes and without a tree


def to_store(raw: bytes) -> Stored:
    """Return a new value that is to be moved to the blob store."""
    value = Stored(blob_id(raw))
    value.load(raw)
    value.pending = True
    return value


Source = Journaled | Stored


class Part(Json):
    """A value within another one, which holds the bytes."""

    __slots__ = ("length", "offset", "source")

    def __init__(self, source: Source, offset: int, length: int) -> None:
        self.source = source
        self.offset = offset
        self.length = length

    @property
    def size(self) -> int:
        return self.length

    @property
    def raw(self) -> bytes:  # type: ignore[override]  # read-only here
        """The text, copied from the loaded source."""
        return self.source.raw[self.offset : self.offset + self.length]

    @property
    def tree(self) -> Any:
        return decode(self.raw)


class Composed(Json):
    """A text in pieces: text, and complete values in between."""

    __slots__ = ("_size", "_skeleton", "count", "levels", "pieces")

    count: int
    """Number of pieces, those of nested values included."""
    levels: int
    """Levels of brackets around the deepest value, those of nested values included."""

    def __init__(self, pieces: Sequence[Value], levels: int) -> None:
        """`levels`: of brackets of the value's own text around the deepest value."""
        self.pieces = pieces
        self._skeleton: tuple[Any, str] | None = None

        size = count = below = 0
        for piece in pieces:
            if isinstance(piece, bytes):
                size += len(piece)
                count += 1
                continue
            size += piece.size
            if isinstance(piece, Composed):
                count += piece.count
                below = max(below, piece.levels)
            else:
                count += 1
        self._size = size
        self.count = count
        self.levels = levels + below

    @property
    def size(self) -> int:
        return self._size

    @property
    def raw(self) -> bytes:  # type: ignore[override]  # read-only here
        """The joined text. Every stored piece must be loaded, and the size be checked before."""
        return b"".join(piece if isinstance(piece, bytes) else piece.raw for piece in flat(self))

    @property
    def tree(self) -> Any:
        return decode(self.raw)

    def __repr__(self) -> str:
        return f"Composed({self._size} bytes in {self.count} pieces)"

    @property
    def too_deep(self) -> bool:
        return self.levels > JSON_DEPTH_MAX

    def skeleton(self) -> tuple[Any, str]:
        """Return the tree of the value, with a placeholder for each value in it, and the mark that begins them.

        A placeholder is a string: the mark, which begins no string of the value's own text, and the piece's index.
        """
        if self._skeleton is not None:
            return self._skeleton

        mark = "~"
        while any(isinstance(piece, bytes) and f'"{mark}'.encode() in piece for piece in self.pieces):
            mark += "~"
        text = b"".join(
            piece if isinstance(piece, bytes) else f'"{mark}{index}"'.encode()
            for index, piece in enumerate(self.pieces)
        )
        found = (decode(text), mark)
        if len(self.pieces) <= SKELETON_PIECES_MAX:
            self._skeleton = found
        return found

    def part(self, tree: Any, mark: str) -> Value:
        """Return a part of the skeleton as a value."""
        text = encode(tree)
        texts = re.split(rb'"' + mark.encode() + rb'(\d+)"', text)
        if len(texts) == 1:
            return text
        pieces: list[Value] = [self.pieces[int(each)] if index % 2 else each for index, each in enumerate(texts)]
        return Composed([piece for piece in pieces if piece != b""], self.levels)


def flat(value: Json) -> Iterator[bytes | Json]:
    """Yield the texts and values of a value in order, without nested composed ones."""
    open_pieces: list[Iterator[Value]] = [iter((value,))]
    while open_pieces:
        piece = next(open_pieces[-1], None)
        if piece is None:
            open_pieces.pop()
        elif isinstance(piece, Composed):
            open_pieces.append(iter(piece.pieces))
        else:
            yield piece


def unloaded(value: Value) -> list[Stored]:
    """Return the values in the blob store to load before `raw` can be read, once each."""
    if isinstance(value, bytes):
        return []
    sources = (_source(piece) for piece in flat(value) if not isinstance(piece, bytes))
    return list({id(each): each for each in sources if isinstance(each, Stored) and not each.loaded}.values())


def unloaded_at(value: Json, parts: Sequence[PathPart]) -> Stored | None:
    """Return the value in the blob store to load before the path can be followed; None if there is none."""
    reached, rest = _descend(value, parts)
    if not rest or not isinstance(reached, Json):
        return None
    source = _source(reached)
    return source if isinstance(source, Stored) and not source.loaded else None


def part_at(value: Json, parts: Sequence[PathPart]) -> Any:
    """Return the part of a value at a path as a `Value`, or `MISSING`. The source to read must be loaded."""
    reached, rest = _descend(value, parts)
    if not rest or not isinstance(reached, Json):
        return reached
    tree = project(reached.tree, tuple(rest))
    return MISSING if tree is MISSING else _shared(encode(tree), reached)


def size_of(value: Value) -> int:
    """Return the length of the value's text."""
    return len(value) if isinstance(value, bytes) else value.size


def is_short(value: Value, texts: tuple[bytes, ...]) -> bool:
    """Return True if the value is one of these texts, each at most `NULL_BYTES_MAX` long."""
    if isinstance(value, bytes):
        return value in texts
    return value.size <= NULL_BYTES_MAX and value.raw in texts


def _descend(value: Any, parts: Sequence[PathPart]) -> tuple[Any, Sequence[PathPart]]:
    """Follow a path through composed values. Return the value reached, or `MISSING`, and the rest of the path."""
    while parts and isinstance(value, Composed):
        tree, mark = value.skeleton()
        for index, part in enumerate(parts, 1):
            tree = project(tree, (part,))
            if tree is MISSING:
                return MISSING, ()
            if tree.__class__ is str and tree.startswith(mark):
                value, parts = value.pieces[int(tree[len(mark) :])], parts[index:]
                break
        else:
            return value.part(tree, mark), ()
    return value, parts


def _source(value: Json) -> Json:
    return value.source if isinstance(value, Part) else value


def _shared(text: bytes, value: Json) -> Value:
    """Return a text found in a value: as a part of the value's source, unless it is short or spelled otherwise.

    Of a stored source only large parts are shared: for small ones the whole source would be loaded again.
    """
    source = _source(value)
    if len(text) < REFERENCE_BYTES_MIN or not isinstance(source, (Journaled, Stored)):
        return text
    if isinstance(source, Stored) and len(text) * SHARE_MIN < source.size:
        return text
    offset = source.raw.find(text)
    return text if offset < 0 else Part(source, offset, len(text))


__all__ = [
    "PIECES_MAX",
    "REFERENCE_BYTES_MIN",
    "Composed",
    "Journaled",
    "Part",
    "Stored",
    "Value",
    "flat",
    "is_short",
    "part_at",
    "size_of",
    "to_store",
    "unloaded",
    "unloaded_at",
]
