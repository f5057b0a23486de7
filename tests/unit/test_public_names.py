"""Names that users, other processes and stored data refer to: none that a released tree had may disappear or change."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from support import ROOT
from support.public_names import collect, missing

from stepflow import errors

GOLDEN = sorted((ROOT / "tests" / "data" / "public_names").glob("*.json"))

FAMILIES = {"Exists": "ALREADY_EXISTS", "Refused": "FAILED_PRECONDITION", "Deadline": "DEADLINE_EXCEEDED"}
"""Classes of errors that users catch by these names, and their gRPC status."""


@cache
def present() -> dict[str, Any]:
    return collect()


@pytest.mark.parametrize("golden", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_every_public_name_of_a_released_tree_is_still_there(golden) -> None:
    released = json.loads(golden.read_text(encoding="utf-8"))
    assert missing(released, present()) == []


@pytest.mark.parametrize(("name", "status"), FAMILIES.items())
def test_an_error_can_be_caught_by_its_oldest_name(name: str, status: str) -> None:
    assert getattr(errors, name).status == status
    assert issubclass(getattr(errors, name), errors.StepflowError)


def test_the_names_of_every_area_are_seen() -> None:
    """Empty lists would pass the test above."""
    assert GOLDEN
    names = present()
    assert "submit" in names["modules"]["stepflow.client"]["Client"]["members"]
    assert "--status" in names["commands"]["commands"]["runs"]["commands"]["list"]["options"]
    assert "--etcd" in names["services"]["executor"]
    assert "startTimeout" in names["configuration"]["plugins"]["mcp"]
    assert {"FLOW_INVALID", "STEPFLOW_SERVER", "RUN_NOT_FOUND"} <= names["reasons"].keys()
    assert names["protos"]["stepflow/mesh/v1/journal.proto"]["messages"]["Entry"]["fields"]["1"]
    assert names["keys"]["makers"]["journal"] == "journal/run_id/000007/00000042"


def test_the_comparison_finds_what_is_gone_and_what_is_changed() -> None:
    old = {"option": {"default": "1", "required": False}, "field": "a: optional string"}
    assert missing(old, {**old, "other": 1}) == []
    assert missing(old, {"option": {"default": "2", "required": False}}) == [
        ".option.default was '1' and is '2'",
        ".field is missing",
    ]
