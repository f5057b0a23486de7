"""The search for a similar name: what it finds, and that its work is bounded."""

from __future__ import annotations

import difflib
import random
from typing import TYPE_CHECKING

from stepflow.flow.syntax import COMPARED_CHARS_MAX, COMPARED_NAMES_MAX, closest

if TYPE_CHECKING:
    import pytest


def test_the_most_similar_name_is_found() -> None:
    names = ["map", "iterate", "put_blob", "get_blob", "openai", "sleep"]
    assert closest("opneai", names) == "openai"
    assert closest("iterrate", names) == "iterate"
    assert closest("gt_blob", names) == "get_blob"
    assert closest("x", names) is None
    assert closest("x", []) is None


def test_few_names_of_the_same_letters_are_compared_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = random.Random(1)
    names = ["".join(drawn.choice("ab") for _ in range(COMPARED_CHARS_MAX)) for _ in range(500)]
    exact = difflib.SequenceMatcher.get_matching_blocks
    compared: list[str] = []

    def counted(matcher: difflib.SequenceMatcher[str]) -> list[difflib.Match]:
        compared.append(str(matcher.a))
        return exact(matcher)

    monkeypatch.setattr(difflib.SequenceMatcher, "get_matching_blocks", counted)
    closest("ab" * (COMPARED_CHARS_MAX // 2), names)
    assert 0 < len(set(compared)) <= COMPARED_NAMES_MAX


def test_a_very_long_name_resembles_none() -> None:
    name = "a" * (COMPARED_CHARS_MAX + 1)
    assert closest(name, [name + "b"]) is None
