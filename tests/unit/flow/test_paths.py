"""The path grammar: parsing, formatting, and lookup."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepflow.errors import Invalid
from stepflow.flow import MISSING, Path, parse_path

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy

READ = [
    ("", (), "$"),
    ("$", (), "$"),
    ("  $  ", (), "$"),
    ("name", ("name",), "$.name"),
    ("user.name", ("user", "name"), "$.user.name"),
    ("items[0]", ("items", 0), "$.items[0]"),
    ("[2].x", (2, "x"), "$[2].x"),
    ("$.a.b", ("a", "b"), "$.a.b"),
    (" $.a ", ("a",), "$.a"),
    ("$..a", ("a",), "$.a"),
    ("$.a.", ("a",), "$.a"),
    ("$.a[ 1 ][02]", ("a", 1, 2), "$.a[1][2]"),
    ("$['x.y']", ("x.y",), '$["x.y"]'),
    ('$[ "x.y" ].z', ("x.y", "z"), '$["x.y"].z'),
    ('$["a"]', ("a",), "$.a"),
    ('$["a]b"]', ("a]b",), '$["a]b"]'),
    ('$["$foo"]', ("$foo",), '$["$foo"]'),
    ('$[""]', ("",), '$[""]'),
    ('$["it\'s"]', ("it's",), '$["it\'s"]'),
    ("$['say \"x\"']", ('say "x"',), "$['say \"x\"']"),
    ("$.0", ("0",), "$.0"),
    ("a b", ("a b",), "$.a b"),
    (" a", (" a",), '$[" a"]'),
    ("größe.θ", ("größe", "θ"), "$.größe.θ"),
    ("""a'b"c""", ("""a'b"c""",), """$.a'b"c"""),
    ("""'" """, ("""'" """,), """$.'" ."""),
]


@pytest.mark.parametrize(("text", "parts", "spelling"), READ)
def test_a_path_is_read_and_has_one_spelling(text: str, parts: tuple[Any, ...], spelling: str) -> None:
    path = parse_path(text)
    assert path.parts == parts
    assert path.text == spelling == str(path)
    assert parse_path(spelling) == path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("$foo", 'write `$.foo`, or `$["$foo"]`'),
        ("$ .a", "expected `.` or `[`"),
        ("$[0]x", "expected `.` or `[` instead of `x`"),
        ("$[-1]", "an index from 0 on or a quoted key"),
        ("$[a]", "an index from 0 on or a quoted key"),
        ("$[*]", "an index from 0 on or a quoted key"),
        ("$[1:2]", "an index from 0 on or a quoted key"),
        ("$[]", "an index from 0 on or a quoted key"),
        ("$.a[", "an index from 0 on or a quoted key"),
        ("$['a\"]", "an index from 0 on or a quoted key"),
        ("$[٣]", "an index from 0 on or a quoted key"),
        ("a[99999999999999999999]", "larger than any array"),
    ],
)
def test_what_is_no_path_is_refused_with_a_way_out(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_path(text)
    assert caught.value.reason == "PATH_INVALID"
    assert says in caught.value.message


def test_a_refused_path_is_not_repeated_at_full_length() -> None:
    with pytest.raises(Invalid) as caught:
        parse_path("$x" + "y" * 10_000)
    assert len(caught.value.message) < 300


TREE = {"f": [10, {"g": None}], "": 1, "a.b": 2, "s": "text", "n": None, "0": "zero"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$", TREE),
        ("f[0]", 10),
        ("f[1].g", None),
        ("f[2]", MISSING),
        ("f.0", MISSING),
        ("$[0]", MISSING),
        ("0", "zero"),
        ("f[1].g.h", MISSING),
        ("n", None),
        ("n.x", MISSING),
        ("s[0]", MISSING),
        ("s.x", MISSING),
        ('$["a.b"]', 2),
        ("a.b", MISSING),
        ('$[""]', 1),
        ("nope", MISSING),
    ],
)
def test_names_reach_into_objects_and_indices_into_arrays(text: str, found: Any) -> None:
    value = parse_path(text).project(TREE)
    assert value is MISSING if found is MISSING else value == found


def _never_both_quotes(key: str) -> bool:
    return not ("'" in key and '"' in key)


parts = st.lists(st.one_of(st.text().filter(_never_both_quotes), st.integers(0, 10**8)), max_size=6)


@relaxed
@given(parts)
def test_every_path_survives_being_written_and_read(parts: list[str | int]) -> None:
    path = Path(tuple(parts))
    assert parse_path(path.text) == path


@relaxed
@given(st.text(alphabet="$.[]'\" ab0", max_size=12))
def test_any_text_is_either_a_stable_path_or_refused(text: str) -> None:
    try:
        path = parse_path(text)
    except Invalid:
        return
    assert parse_path(path.text) == path
    assert parse_path(path.text).text == path.text
