"""Every guarantee names existing tests, and the documents state only guarantees with a test."""

from __future__ import annotations

import ast
import re
from collections import Counter

import guarantees
import pytest
from support import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKED = re.compile(r"<!-- promises -->\n(.*?)<!-- /promises -->", re.DOTALL)


def promised_in(text: str) -> list[str]:
    """Return what stands in the marked lists of a document, a sentence for each point."""
    points = [point for block in MARKED.findall(text) for point in re.split(r"^- ", block, flags=re.MULTILINE)]
    return [" ".join(point.split()) for point in points if point.strip()]


@pytest.mark.parametrize("promise", guarantees.PROMISES, ids=lambda promise: promise.id)
def test_a_promise_has_tests_and_they_exist(promise: guarantees.Promise) -> None:
    assert promise.tests
    for test in promise.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
        assert name.startswith("test_")
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_promises_have_ids_and_sentences_of_their_own() -> None:
    for values in (
        [promise.id for promise in guarantees.PROMISES],
        [promise.sentence for promise in guarantees.PROMISES],
    ):
        assert max(Counter(values).values()) == 1
    assert all(promise.sentence.endswith(".") for promise in guarantees.PROMISES)


def test_the_page_of_promises_is_this_list() -> None:
    page = (ROOT / "docs" / "explanation" / "guarantees.md").read_text("utf-8")
    assert page == guarantees.page(), "run: python tests/guarantees.py > docs/explanation/guarantees.md"


def test_what_the_documents_promise_is_what_is_proved() -> None:
    sentences = {promise.sentence for promise in guarantees.PROMISES}
    promised = {path.name: promised_in(path.read_text("utf-8")) for path in DOCUMENTS}
    assert promised["README.md"], "the README makes promises"
    assert promised["run-a-mesh.md"], "so does the page on the mesh"
    for name, points in promised.items():
        assert set(points) <= sentences, f"{name} promises what guarantees.py does not know"


def test_marked_lists_are_read() -> None:
    text = "before\n\n<!-- promises -->\n- One\n  thing.\n- Another.\n<!-- /promises -->\n\n- Not this."
    assert promised_in(text) == ["One thing.", "Another."]
