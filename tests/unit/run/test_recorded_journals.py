"""Journals that engines of earlier trees have written: the present one reads them alike, and continues them alike."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from support import ROOT
from support.journals import ENTRY_KINDS, Recording

from stepflow.mesh.v1 import journal_pb2 as pb

FILES = sorted((ROOT / "tests" / "data" / "journals").glob("*/*.json"))
NAMES = [f"{path.parent.name}-{path.stem}" for path in FILES]


@cache
def data_of(number: int) -> dict[str, Any]:
    return dict(json.loads(FILES[number].read_text(encoding="utf-8")))


@pytest.mark.parametrize("number", range(len(FILES)), ids=NAMES)
def test_a_recorded_journal_is_replayed_to_the_same_state_and_continued_to_the_same_end(number: int) -> None:
    data = data_of(number)
    recording = Recording.read(data)
    for cut in data["cuts"]:
        assert without_cut_off(recording.cut(cut["upto"])) == without_cut_off(cut)


def without_cut_off(cut: dict[str, Any]) -> dict[str, Any]:
    """Return a cut as earlier trees could list it.

    Without the steps that the end of the run cut off, which they listed as running, or not at all; skipped steps as
    failed.
    """
    state = cut["state"]
    steps = [step | {"status": "failed"} if step["status"] == "skipped" else step for step in state["steps"]]
    if state["status"] is not None:
        steps = [step for step in steps if step["status"] in ("completed", "failed")]
    return {**cut, "state": {**state, "steps": steps}}


@pytest.mark.parametrize("number", range(len(FILES)), ids=NAMES)
def test_an_entry_is_encoded_as_it_was(number: int) -> None:
    for raw in Recording.read(data_of(number)).world.journal:
        assert pb.Entry.FromString(raw).SerializeToString(deterministic=True) == raw


def test_the_records_hold_entries_of_every_kind() -> None:
    kinds = {
        str(pb.Entry.FromString(raw).WhichOneof("kind"))
        for number in range(len(FILES))
        for raw in Recording.read(data_of(number)).world.journal
    }
    assert kinds == ENTRY_KINDS
