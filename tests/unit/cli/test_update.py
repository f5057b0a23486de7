"""`stepflow test --update` changes the selected outputs and no other byte."""

import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow.cli.testing.update import update_outputs
from stepflow.errors import FailedPrecondition

SUCCESS = {"outcome": "success", "result": {"text": "line one\nline two", "when": "2026-01-01", "yes": "no", "n": 1.0}}

BLOCK = """\
# the head
name: 'kept'   # a remark
x-unknown: {b: 1, a: 2}

test:
  cases:
  - name: first   # why
    input: {a: 1}
    output:
      outcome: success   # goes with the output
      result: |
        # no comment, but text
        old
  # about the second
  - name: second
    output:
        outcome: failed
        error: {code: TIMEOUT, message: old}   # goes as well
    input: "q"   # stays

  # about the third, which has no output
  - name: third
    input:
      - 1   # one
# the tail
output: {$input: a}
"""


def write(tmp_path: Path, text: str, name: str = "flow.yaml") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def outputs_of(path: Path) -> list[Any]:
    return [case.get("output") for case in yaml.safe_load(path.read_text())["test"]["cases"]]


def test_an_output_is_replaced_and_the_rest_keeps_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, BLOCK)
    update_outputs(path, {0: {"outcome": "success", "result": 1}})
    before, after = BLOCK.split("    output:\n      outcome: success", 1)
    rest = after[after.index("  # about the second") :]
    assert path.read_text() == f"{before}    output:\n      outcome: success\n      result: 1\n{rest}"


def test_every_kind_of_place_can_be_updated_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, BLOCK)
    failed = {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "new"}}
    update_outputs(path, {0: SUCCESS, 1: failed, 2: SUCCESS})
    assert [output["outcome"] for output in outputs_of(path)] == ["success", "failed", "success"]
    text = path.read_text()
    for kept in (
        "# the head",
        "# a remark",
        "# why",
        "# about the second",
        "# stays",
        "# about the third",
        "# the tail",
    ):
        assert kept in text
    assert "name: 'kept'" in text
    assert "x-unknown: {b: 1, a: 2}" in text


def test_texts_come_back_as_the_same_texts(tmp_path: Path) -> None:
    path = write(tmp_path, BLOCK)
    odd = [
        "",
        " x ",
        "a: b",
        "# c",
        "- d",
        "null",
        "0x1F",
        "1e3",
        "~",
        "é\u2028\x85",
        "'\"",
        "line\n\n  two\n",
        "x" * 9000,
    ]
    update_outputs(path, {1: {"outcome": "success", "result": {"odd": odd, "empty": [{}, []], "big": 2**70}}})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(plain, plain)
def test_any_json_can_be_an_output(first: Any, second: Any) -> None:
    """The update itself compares what it wrote with what was wanted, and refuses a difference."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), BLOCK)
        update_outputs(path, {0: {"outcome": "success", "result": first}, 2: {"outcome": "success", "result": second}})
        assert "  # about the second\n" in path.read_text()


def test_a_case_in_braces_stays_in_braces(tmp_path: Path) -> None:
    path = write(tmp_path, "test: {cases: [{name: a, input: 1}, {name: b, input: 2, output: {outcome: success}}]}\n")
    update_outputs(path, {0: SUCCESS, 1: SUCCESS})
    assert path.read_text().count("\n") == 1
    assert [output["outcome"] for output in outputs_of(path)] == ["success", "success"]


def test_an_empty_output_is_filled(tmp_path: Path) -> None:
    path = write(tmp_path, "test:\n  cases:\n  - name: a\n    output:\n    input: 1\n")
    update_outputs(path, {0: {"outcome": "success", "result": None}})
    assert outputs_of(path) == [{"outcome": "success", "result": None}]


def test_line_ends_of_the_file_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, BLOCK.replace("\n", "\r\n"))
    update_outputs(path, {0: SUCCESS, 2: SUCCESS})
    assert b"\n" not in path.read_bytes().replace(b"\r\n", b"")


def test_a_byte_order_mark_does_not_shift_places(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + BLOCK)
    update_outputs(path, {0: SUCCESS, 2: SUCCESS})
    assert path.read_text().startswith("# the head")


def test_updating_twice_changes_nothing_more(tmp_path: Path) -> None:
    path = write(tmp_path, BLOCK)
    update_outputs(path, {0: SUCCESS, 1: SUCCESS, 2: SUCCESS})
    once = path.read_bytes()
    update_outputs(path, {0: SUCCESS, 1: SUCCESS, 2: SUCCESS})
    assert path.read_bytes() == once


def test_an_output_that_something_else_refers_to_is_left_alone(tmp_path: Path) -> None:
    text = "test:\n  cases:\n  - name: a\n    input: 1\n    output: &shared\n      outcome: success\nx: *shared\n"
    path = write(tmp_path, text)
    with pytest.raises(FailedPrecondition, match="edit the file by hand"):
        update_outputs(path, {0: SUCCESS})
    assert path.read_text() == text


def test_an_output_that_is_an_alias_is_left_alone(tmp_path: Path) -> None:
    text = "x: &shared {outcome: success}\ntest:\n  cases:\n  - name: a\n    output: *shared\n    input: 1\n"
    path = write(tmp_path, text)
    with pytest.raises(FailedPrecondition):
        update_outputs(path, {0: SUCCESS})
    assert path.read_text() == text


def test_json_is_written_anew_with_its_members_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, '{"z": 1, "test": {"cases": [{"name": "a", "input": 1}]}, "a": 2}', "flow.json")
    update_outputs(path, {0: {"outcome": "success", "result": 1}})
    tree = yaml.safe_load(path.read_text())
    assert list(tree) == ["z", "test", "a"]
    assert tree["test"]["cases"][0]["output"] == {"outcome": "success", "result": 1}


def test_the_file_keeps_its_mode_and_a_link_to_it_stays_a_link(tmp_path: Path) -> None:
    path = write(tmp_path, BLOCK)
    path.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    update_outputs(link, {0: SUCCESS})
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["flow.yaml", "link.yaml"]
