"""Findings about flows on the wire."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2

from stepflow.cli.mesh_check import _diagnostic
from stepflow.client.conversion import diagnostic_of
from stepflow.errors import Invalid
from stepflow.flow import Diagnostic, Diagnostics
from stepflow.mesh.v1 import flows_pb2
from stepflow.rpc.errors import status_of
from stepflow.rpc.findings import finding_message, finding_tree, findings_detail, findings_tree

FOUND = Diagnostics(
    (
        Diagnostic(1003, "may not exist", "$.output"),
        Diagnostic(2900, "does not exist", "$.steps[0].component", {"step_id": "a", "component": "/mine/akk"}),
        Diagnostic(2905, "is unknown", severity="warning"),
        Diagnostic(3003, "is not there"),
    )
)


def test_a_finding_comes_back_as_it_was() -> None:
    for item in FOUND:
        assert finding_tree(finding_message(item.to_tree())) == item.to_tree()


def test_facts_that_are_too_large_are_left_out() -> None:
    large = Diagnostic(2900, "x", data={"step_id": "a" * 2_000})
    assert "data" not in finding_tree(finding_message(large.to_tree()))


def test_details_have_the_errors_first_and_count_what_does_not_fit() -> None:
    trees = FOUND.to_tree()["diagnostics"]
    whole = findings_tree(findings_detail(trees, 10_000))
    assert [tree["code"] for tree in whole["diagnostics"]] == [2900, 3003, 1003, 2905]
    assert (whole["numFatal"], whole["numError"], whole["numWarning"]) == (1, 1, 2)
    assert "leftOut" not in whole

    part = findings_tree(findings_detail(trees, 150))
    assert len(part["diagnostics"]) == 4 - part["leftOut"] < 4
    assert findings_tree(findings_detail(trees, 0)) == {
        "diagnostics": [],
        "numFatal": 0,
        "numError": 0,
        "numWarning": 0,
        "leftOut": 4,
    }


@pytest.mark.parametrize("letter", ["x", "é", "字"])
@pytest.mark.parametrize("length", [10, 400, 5_000])
def test_a_refusal_fits_into_the_metadata_that_clients_accept(letter: str, length: int) -> None:
    found = Diagnostics(tuple(Diagnostic(2900, letter * length, "$." + letter * 50) for _ in range(100)))
    status = status_of(Invalid("FLOW_INVALID", letter * length, diagnostics=found.to_tree()))
    message = status.message.encode()
    beside = len(message) if message.isascii() else 3 * len(message)
    assert beside + 4 * status.ByteSize() / 3 < 7_800


def test_the_findings_of_a_refusal_travel_once() -> None:
    few = Diagnostics((Diagnostic(2900, "does not exist"),))
    status = status_of(Invalid("FLOW_INVALID", "no", diagnostics=few.to_tree(), flow="f"))
    info, findings = error_details_pb2.ErrorInfo(), flows_pb2.FlowFindings()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(findings)
    assert dict(info.metadata) == {"flow": "f"}
    assert findings_tree(findings) == few.to_tree()


def test_a_finding_of_a_later_version_is_shown_by_its_text_and_level() -> None:
    message = flows_pb2.FlowDiagnostic(code=9999, kind="new", level=17, message="something new", path="$.x")  # type: ignore[arg-type]  # a level without a name
    assert finding_tree(message)["level"] == "error"
    shown = _diagnostic(diagnostic_of(message))
    assert (shown.level, shown.formatted, shown.path) == ("error", "something new", "$.x")
