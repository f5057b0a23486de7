"""Step paths: what is written is read back, and every other text is refused with the form to use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow.errors import Invalid
from stepflow.step_path import STEP_PATH_CHARS_MAX, StepPath, SubRunStep, parse_step_path

IDS = st.text(min_size=1, max_size=12) | st.sampled_from(["7", "a/b", "a[0]", '"', "0", "[", " ", "ask", "Ä", "\\"])
NUMBERS = st.integers(0, 999_999_999)
PARENTS = st.builds(SubRunStep, IDS, st.lists(NUMBERS, max_size=2).map(tuple))
PATHS = st.builds(StepPath, IDS, st.lists(PARENTS, max_size=4).map(tuple), st.none() | NUMBERS)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("ask", StepPath("ask")),
        ("7", StepPath("7")),
        ("7/ask", StepPath("ask", item=7)),
        ("7/summaries[0]/ask", StepPath("ask", (SubRunStep("summaries", (0,)),), 7)),
        ("inner/ask", StepPath("ask", (SubRunStep("inner"),))),
        ("agent[2.5]/ask", StepPath("ask", (SubRunStep("agent", (2, 5)),))),
        ("0/a[1]/b[2]/c", StepPath("c", (SubRunStep("a", (1,)), SubRunStep("b", (2,))), 0)),
        ('"7"/ask', StepPath("ask", (SubRunStep("7"),))),
        ("7[0]/ask", StepPath("ask", (SubRunStep("7", (0,)),))),
        ("3/7/ask", StepPath("ask", (SubRunStep("7"),), 3)),
        ('"a/b"[0]/"c d"', StepPath("c d", (SubRunStep("a/b", (0,)),))),
    ],
)
def test_a_path_is_read_and_written_the_same(text: str, path: StepPath) -> None:
    assert parse_step_path(text) == path
    assert str(path) == text


@given(PATHS)
def test_every_path_is_read_back(path: StepPath) -> None:
    assert parse_step_path(str(path)) == path


@pytest.mark.parametrize(
    "text",
    ["", "/", "a/", "/a", "a//b", "a[0]", "a[]/b", "a[-1]/b", "a[1.2.3]/b", "a[01]/b", "a b", 'a"b', '"a', '""', "a]"],
)
def test_another_text_is_refused_with_the_form_to_use(text: str) -> None:
    with pytest.raises(Invalid, match=r"7/summaries\[0\]/ask") as refused:
        parse_step_path(text)
    assert refused.value.reason == "STEP_PATH_INVALID"


def test_a_text_without_bound_is_refused_unread() -> None:
    with pytest.raises(Invalid, match="at most 16,384 characters"):
        parse_step_path("a/" * STEP_PATH_CHARS_MAX)
