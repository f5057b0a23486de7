"""Parsing text to trees: YAML 1.2 pitfalls, bounds, source locations, and errors with locations."""

from typing import Any

import pytest
import yaml as library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepflow import codec
from stepflow.errors import Invalid
from stepflow.flow import ComplexKey, DocumentInvalid, parse_tree

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy


def yaml(text: str | bytes, **options: Any) -> Any:
    return parse_tree(text, source="doc.yaml", format="yaml", **options).value


def refusal(text: str | bytes, syntax: Any = "yaml", **options: Any) -> DocumentInvalid:
    with pytest.raises(DocumentInvalid) as caught:
        parse_tree(text, source="doc", format=syntax, **options)
    return caught.value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("2026-11-23", "2026-11-23"),
        ("2026-11-23T10:00:00Z", "2026-11-23T10:00:00Z"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("010", "010"),
        ("08012", "08012"),
        ("0044123", "0044123"),
        ("-012", "-012"),
        ("00", "00"),
        ("0", 0),
        ("-0", 0),
        ("01.5", 1.5),
        ("0o10", 8),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("+3", 3),
        ("-3", -3),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1e", "1e"),
        ("1.0", 1.0),
        ("-", [None]),
        ("--", "--"),
        (".", "."),
        ("=", "="),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("nULL", "nULL"),
        ("", None),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("'true'", "true"),
        ('"1"', "1"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ("!!int '7'", 7),
        ("!!float 7", 7.0),
        ("!!null ''", None),
        ("!!bool true", True),
        ("nano", "nano"),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(written: str, value: Any) -> None:
    read = yaml(written)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("word", [".inf", "-.Inf", ".nan", "1e999", "9" * 5000, "1e-400"])
def test_numbers_that_json_cannot_hold_are_refused(word: str) -> None:
    error = refusal(f"a:\n  - {word}")
    assert (error.reason, error.line, error.column) == ("YAML_INVALID", 2, 5)
    assert "quote it" in error.problem


@pytest.mark.parametrize("tag", ["!!binary aGk=", "!!timestamp 2026-01-01", "!include x", "!!set {a}", "!!int x"])
def test_tags_without_a_meaning_in_json_are_refused(tag: str) -> None:
    assert refusal(f"a: {tag}").reason == "YAML_INVALID"


def test_errors_do_not_show_values() -> None:
    for text in ("key: !!int canary", "key: 'canary", "key: [canary", "? [canary]\n: 1", "- canary\nb: canary"):
        assert "canary" not in refusal(text).message
    assert "canary" not in refusal('{"key": "canary', "json").message
    assert "canary" not in refusal('{"key": canary}', "json").message


def test_a_repeated_key_is_refused_with_its_line() -> None:
    error = refusal("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n")
    assert (error.line, error.column) == (5, 3)
    assert "`c` is given twice" in error.problem


def test_a_repeated_key_in_json_counts_the_last_time() -> None:
    assert parse_tree('{"a": 1, "a": 2}', source="doc", format="json").value == {"a": 2}


def test_a_second_document_is_refused() -> None:
    error = refusal("a: 1\n---\nb: 2\n")
    assert (error.line, error.column) == (2, 1)
    assert "second document" in error.problem
    assert yaml("---\na: 1\n...\n") == {"a": 1}


def test_aliases_stand_for_what_they_name() -> None:
    assert yaml("a: &x {k: [1]}\nb: *x\nc: [*x, *x]") == {"a": {"k": [1]}, "b": {"k": [1]}, "c": [{"k": [1]}] * 2}


def test_an_alias_must_be_known_and_may_not_contain_itself() -> None:
    assert "has no anchor before it" in refusal("a: *x").problem
    assert "contains it" in refusal("a: &x [*x]").problem


def test_a_few_lines_cannot_stand_for_gigabytes() -> None:
    lines = ["l0: &l0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert "more than a document may hold" in refusal("\n".join(lines)).problem
    long = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]"
    assert "more than a document may hold" in refusal(long).problem


def test_aliases_cannot_pile_up_depth() -> None:
    lines = ["l0: &l0 [x]"] + [f"l{n}: &l{n} [*l{n - 1}]" for n in range(1, 300)]
    assert refusal("\n".join(lines)).reason == "JSON_TOO_DEEP"


def test_merge_keys_take_over_members_that_are_not_given() -> None:
    text = "base: &base {a: 1, b: 2}\nmore: &more {b: 3, c: 4}\none:\n  b: 9\n  <<: *base\ntwo:\n  <<: [*base, *more]\n"
    read = yaml(text)
    assert read["one"] == {"a": 1, "b": 9}
    assert read["two"] == {"a": 1, "b": 2, "c": 4}
    assert yaml('"<<": 1') == {"<<": 1}
    assert "merges a mapping" in refusal("<<: 1").problem


@pytest.mark.parametrize("key", ["1", "true", "~", "1.5", "[a, b]", "{a: 1}", "null"])
def test_keys_that_are_no_strings_are_refused(key: str) -> None:
    assert "a key must be a string" in refusal(f"? {key}\n: x").problem


def test_complex_keys_are_kept_as_json_text_when_asked_for() -> None:
    read = yaml("{b: 2, a: 1}: x\nplain: y\n7: z\n? [1, é]\n: w\n", complex_keys=True)
    assert list(read) == ['{"b":2,"a":1}', "plain", "7", '[1,"é"]']
    assert [isinstance(key, ComplexKey) for key in read] == [True, False, True, True]


@pytest.mark.parametrize("syntax", ["yaml", "json"])
def test_nesting_is_limited(syntax: Any) -> None:
    deep = codec.JSON_DEPTH_MAX
    tree = parse_tree("[" * deep + "]" * deep, source="doc", format=syntax).value
    codec.check_depth(tree)
    assert refusal("[" * (deep + 2) + "]" * (deep + 2), syntax).reason == "JSON_TOO_DEEP"
    # Parsers have limits of their own: libyaml as PyYAML 6.0.4 has it stops first.
    assert refusal("[" * 100_000, syntax).reason in ("JSON_TOO_DEEP", "JSON_INVALID", "YAML_INVALID")


@pytest.mark.parametrize("syntax", ["yaml", "json"])
def test_size_is_checked_before_anything_else(syntax: Any) -> None:
    error = refusal("{" * 101, syntax, bytes_max=100)
    assert error.reason == "PAYLOAD_TOO_LARGE"
    assert "101 bytes; the limit is 100" in error.message


@pytest.mark.parametrize("syntax", ["yaml", "json"])
def test_text_must_be_utf8(syntax: Any) -> None:
    error = refusal(b'{"a":\n"\xff"}', syntax)
    assert (error.reason, error.line) == ("TEXT_NOT_UTF8", 2)
    assert refusal('{"a": "\ud800"}', syntax).reason == "TEXT_NOT_UTF8"
    assert parse_tree(b'\xef\xbb\xbf{"a": "\xc3\xa9"}', source="doc", format=syntax).value == {"a": "é"}


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{"a": 1,\n "b": nul}', 2, 11),
        ('{"a": 1', 1, 8),
        ("", 1, 1),
        ('{"ä": 1,\n\n "b" 2}', 3, 6),
        ('{"a": NaN}', 1, 7),
    ],
)
def test_bad_json_is_refused_with_line_and_column(text: str, line: int, column: int) -> None:
    error = refusal(text, "json")
    assert error.reason == "JSON_INVALID"
    assert (error.line, error.column) == (line, column)
    assert error.message.startswith(f"doc:{line}:{column}: is not valid JSON")


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("a: [1,\nb: 2\nc", 4, 1), ("a: 'x\n\nb", 3, 2), ("a:\n\t- b", 2, 1), ("a: b: c", 1, 5), ("a: \x00", 1, 4)],
)
def test_bad_yaml_is_refused_with_line_and_column(text: str, line: int, column: int) -> None:
    error = refusal(text)
    assert error.reason == "YAML_INVALID"
    assert (error.line, error.column) == (line, column)
    assert isinstance(error, Invalid)


def test_members_and_elements_of_yaml_are_located() -> None:
    tree = parse_tree("a: 1\nb:\n  - x\n  -   k: v\n", source="doc", format="yaml")
    assert tree.locate(()) == (1, 1)
    assert tree.locate(("a",)) == (1, 1)
    assert tree.locate(("b", 0)) == (3, 5)
    assert tree.locate(("b", 1, "k")) == (4, 7)
    assert tree.locate(("b", 9)) is None
    assert tree.nearest(("b", 9, "x")) == (2, 1)


def test_members_of_json_are_located_in_spite_of_tabs_and_escapes() -> None:
    text = '{\n\t"a": "\\ud83d\\ude00 \\/ \\"",\n\t"b": [1,\n\t\t{"c": 2}]}'
    tree = parse_tree(text, source="doc", format="json")
    assert tree.locate(("a",)) == (2, 2)
    assert tree.locate(("b", 1, "c")) == (4, 4)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@relaxed
@given(json_values)
def test_json_text_comes_back_as_it_went(value: Any) -> None:
    read = parse_tree(codec.encode(value), source="doc", format="json").value
    assert codec.encode(read) == codec.encode(value)


@relaxed
@given(json_values)
def test_yaml_reads_what_a_yaml_library_writes(value: Any) -> None:
    # Everything quoted and tagged: what that library leaves plain, it means by the rules of YAML 1.1.
    text = library.safe_dump(value, default_style='"')
    read = yaml(text)
    assert codec.encode(read) == codec.encode(_sorted(value))


@relaxed
@given(st.text(alphabet="ab:-[]{}&*!<?|>'\"%#,\n 0.", max_size=40))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    try:
        value = yaml(text)
    except DocumentInvalid as error:
        placed = error.line >= 1
    else:
        placed = codec.compact(codec.encode(value)) != b""
    assert placed


def _sorted(value: Any) -> Any:
    """Order members as the library writes them."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
