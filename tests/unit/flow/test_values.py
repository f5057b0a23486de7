"""Composed values: their text, and the parts of it that paths find, are those of the joined text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepflow.codec import Json, decode, encode
from stepflow.flow.paths import MISSING, project
from stepflow.flow.values import Composed, Journaled, Part, Stored, Value, flat, part_at, size_of, unloaded, unloaded_at

LONG = "x" * 600

trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "~", "~0", '"~0', "~~1", LONG]),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "~", "~1"]), below, max_size=3)
    ),
    max_leaves=12,
)


def stored(text: bytes) -> Stored:
    value = Stored("0" * 64)
    value.load(text)
    return value


def composed(tree: Any, draw: Any) -> list[Value]:
    """Return the pieces of a tree's text; some subtrees are values of their own."""
    kind = draw(st.sampled_from(["text", "text", "json", "journaled", "stored", "composed"]))
    if kind == "composed":
        return [Composed(pieces_of(tree, draw), 1)]
    if kind == "text":
        return pieces_of(tree, draw)
    text = encode(tree)
    return [{"json": Json(text), "journaled": Journaled(text, 7), "stored": stored(text)}[kind]]


def pieces_of(tree: Any, draw: Any) -> list[Value]:
    pieces: list[Value] = []
    if isinstance(tree, dict):
        pieces.append(b"{")
        for index, (key, child) in enumerate(tree.items()):
            pieces += [(b"," if index else b"") + encode(key) + b":", *composed(child, draw)]
        pieces.append(b"}")
    elif isinstance(tree, list):
        pieces.append(b"[")
        for index, child in enumerate(tree):
            pieces += [b",", *composed(child, draw)] if index else composed(child, draw)
        pieces.append(b"]")
    else:
        pieces.append(encode(tree))
    return joined_texts(pieces)


def joined_texts(pieces: list[Value]) -> list[Value]:
    """Join neighbouring texts, as compiled expressions have them."""
    joined: list[Value] = []
    for piece in pieces:
        if joined and isinstance(piece, bytes) and isinstance(joined[-1], bytes):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def paths_of(tree: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = [("missing",), (9,)]
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        found += [(key,), *((key, *path) for path in paths_of(child))]
    return found


def text_of(value: Value) -> bytes:
    return value if isinstance(value, bytes) else value.raw


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy
@given(data=st.data(), tree=trees)
def test_a_composed_value_reads_like_its_text(data: st.DataObject, tree: Any) -> None:
    value = Composed(pieces_of(tree, data.draw), 1)
    assert value.raw == encode(tree)
    assert value.size == len(value.raw)
    assert not unloaded(value)
    for path in paths_of(tree):
        expected = project(tree, path)
        found = part_at(value, path)
        if expected is MISSING:
            assert found is MISSING
        else:
            assert text_of(found) == encode(expected)
            assert size_of(found) == len(encode(expected))


def test_a_part_of_a_journaled_result_refers_to_its_bytes() -> None:
    result = Journaled(encode({"n": 1, "text": LONG}), 3)
    part = part_at(result, ("text",))
    assert isinstance(part, Part)
    assert (part.source, part.raw) == (result, encode(LONG))
    assert part_at(result, ("n",)) == b"1"


def test_a_small_part_of_a_stored_result_is_copied_so_that_it_is_not_loaded_again() -> None:
    result = stored(encode({"text": LONG, "rest": "y" * 10_000}))
    assert part_at(result, ("text",)) == encode(LONG)
    assert isinstance(part_at(result, ("rest",)), Part)


def test_a_part_that_is_spelled_otherwise_is_copied() -> None:
    result = Journaled(b'{"list":[' + b"1.50," * 200 + b"2]}", 3)
    assert part_at(result, ("list",)) == encode([1.5] * 200 + [2])


def test_only_the_value_that_a_path_leads_into_must_be_loaded() -> None:
    one, other = Stored("1" * 64, 40_000), Stored("2" * 64, 40_000)
    value = Composed([b'{"one":', one, b',"other":[', other, b"]}"], 2)
    assert unloaded(value) == [one, other]
    assert unloaded_at(value, ("one",)) is None
    assert unloaded_at(value, ("one", "a")) is one
    assert unloaded_at(value, ("other", 0, 3)) is other
    assert unloaded_at(value, ("other", 1)) is None
    assert part_at(value, ("other", 0)) is other
    assert list(flat(part_at(value, ("other",)))) == [b"[", other, b"]"]


@pytest.mark.parametrize("count", [3, 20_000])
def test_a_skeleton_is_kept_only_for_few_pieces(count: int) -> None:
    pieces: list[Value] = [b"["]
    for index in range(count):
        pieces += [b"," if index else b"", Json(b"%d" % index)]
    value = Composed([piece for piece in [*pieces, b"]"] if piece != b""], 1)
    assert text_of(part_at(value, (count - 1,))) == b"%d" % (count - 1)
    assert (value._skeleton is not None) == (count == 3)
    assert decode(value.raw)[1] == 1
