"""The frames of a component's exception: whose they are, how paths are told, and the bounds."""

from __future__ import annotations

import json
import os
import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stepflow.component.failures import failure_line
from stepflow.component.frames import (
    CAUSES_MAX,
    FRAMES_CHARS_MAX,
    LIBRARY_FRAMES_MAX,
    OWN_FRAMES_MAX,
    FramesOf,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOURCE = """
import json

TABLE = {"known": 1}

def greet(name):
    secret = "hunter2-hunter2"
    return _look_up(name)

def _look_up(name):
    return _row(name)

def _row(name):
    return TABLE[name]

def parse(text):
    return json.loads(text)

def wraps(name):
    try:
        greet(name)
    except KeyError as error:
        raise RuntimeError("no table") from error

def dives(depth):
    return dives(depth + 1)

def runs_text():
    exec("raise ValueError('inside')", {})
"""


@pytest.fixture
def components(tmp_path: Path) -> dict[str, Any]:
    """The functions of a file `app/components.py` below the server's folder."""
    file = tmp_path / "app" / "components.py"
    file.parent.mkdir()
    file.write_text(textwrap.dedent(SOURCE))
    namespace: dict[str, Any] = {}
    exec(compile(SOURCE, str(file), "exec"), namespace)  # noqa: S102  # as an import would, without a module to remove
    return namespace


def frames_of(function: Callable[..., Any], argument: Any, folder: Path) -> FramesOf:
    try:
        function(argument)
    except Exception as error:
        return FramesOf(error, function, f"{folder}{os.sep}")
    raise AssertionError("the component did not fail")


def test_the_frames_of_the_author_lead_from_the_component_to_the_place_of_the_error(components, tmp_path):
    found = frames_of(components["greet"], "x", tmp_path)
    own = [frame for frame in found.frames if frame["file"] == "app/components.py"]
    assert own == [
        {"file": "app/components.py", "line": 8, "function": "greet", "code": "return _look_up(name)"},
        {"file": "app/components.py", "line": 11, "function": "_look_up", "code": "return _row(name)"},
        {"file": "app/components.py", "line": 14, "function": "_row", "code": "return TABLE[name]"},
    ]
    assert found.innermost() == "app/components.py:14 in _row"


def test_frames_hold_no_values_of_variables(components, tmp_path):
    assert "hunter2" not in json.dumps(frames_of(components["greet"], "x", tmp_path).frames)


def test_frames_of_libraries_follow_and_are_never_the_innermost_one(components, tmp_path):
    found = frames_of(components["parse"], "{", tmp_path)
    assert found.frames[0] == {
        "file": "app/components.py",
        "line": 17,
        "function": "parse",
        "code": "return json.loads(text)",
    }
    assert {frame["file"] for frame in found.frames if frame.get("library")} >= {"json/decoder.py"}
    assert found.innermost() == "app/components.py:17 in parse"


def test_a_component_outside_of_the_folder_is_told_relative_to_its_own(components, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert frames_of(components["greet"], "x", elsewhere).innermost() == "components.py:14 in _row"


def test_causes_are_told_with_their_own_frames(components, tmp_path):
    found = frames_of(components["wraps"], "x", tmp_path)
    assert found.innermost() == "app/components.py:23 in wraps"
    (cause,) = found.causes
    assert cause["exception"] == "KeyError: 'x'"
    assert [frame["function"] for frame in cause["frames"] if not frame.get("library")][-1] == "_row"


def test_an_endless_recursion_leaves_few_frames(components, tmp_path):
    found = frames_of(components["dives"], 0, tmp_path)
    own = [frame for frame in found.frames if not frame.get("library")]
    assert 0 < len(own) <= OWN_FRAMES_MAX
    assert len(found.frames) - len(own) <= LIBRARY_FRAMES_MAX
    assert len(json.dumps([found.frames, found.causes])) < 2 * FRAMES_CHARS_MAX


def test_a_ring_of_causes_ends(tmp_path):
    def ring(_: Any) -> None:
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    assert 0 < len(frames_of(ring, None, tmp_path).causes) <= CAUSES_MAX


def test_executed_text_is_named_and_the_file_around_it_is_the_innermost(components, tmp_path):
    found = frames_of(lambda _: components["runs_text"](), None, tmp_path)
    assert found.innermost() == "app/components.py:29 in runs_text"
    assert "<string>" in {frame["file"] for frame in found.frames}


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Falsy(Exception):
    def __len__(self) -> int:
        return 0


def raised_from(cause: BaseException) -> BaseException:
    try:
        raise RuntimeError("outer") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "message"),
    [(Exits(), "Exits"), (type("N" * 1_000_000, (Exception,), {})(), "N" * 200)],
    ids=["text that exits", "long name"],
)
def test_an_odd_exception_is_answered_with_its_bounded_name(error: BaseException, message: str) -> None:
    call: Any = SimpleNamespace(id=1, cancelled=False, component=SimpleNamespace(path="/x", function=raised_from))
    line = json.loads(failure_line(call, error, -32000, show_traceback=False))
    assert line["error"]["message"] == message
    assert line["error"]["data"]["exception_type"] == message


@pytest.mark.parametrize("cause", [Exits(), Falsy("inner")])
def test_an_odd_cause_is_told(cause: BaseException, tmp_path: Path) -> None:
    found = FramesOf(raised_from(cause), raised_from, f"{tmp_path}{os.sep}")
    assert [each["exception"].partition(":")[0] for each in found.causes] == [type(cause).__name__]
