"""Findings about flows on the wire: from the public JSON shape of a diagnostic to `FlowDiagnostic`, and back.

The details of a refusal hold as many findings as fit into the metadata of a call (`findings_detail`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.codec import decode, encode
from stepflow.mesh.v1 import flows_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA_BYTES_MAX = 1_000
"""Facts of one finding; larger ones are left out."""

TEXT_CHARS_MAX = 600
"""Length of a finding's text within the details of a refusal."""

_LEVELS = {
    "warning": flows_pb2.FlowDiagnostic.LEVEL_WARNING,
    "error": flows_pb2.FlowDiagnostic.LEVEL_ERROR,
    "fatal": flows_pb2.FlowDiagnostic.LEVEL_FATAL,
}
_NAMES = {number: name for name, number in _LEVELS.items()}


def finding_message(tree: dict[str, Any]) -> flows_pb2.FlowDiagnostic:
    """Encode a finding, as `Diagnostic.to_tree` returns it."""
    data = encode(tree["data"]) if tree.get("data") else b""
    return flows_pb2.FlowDiagnostic(
        code=tree["code"],
        kind=tree["kind"],
        level=_LEVELS[tree["level"]],
        message=tree["formatted"],
        path=tree.get("path") or "",
        experimental=bool(tree.get("experimental")),
        data_json=data if len(data) <= DATA_BYTES_MAX else b"",
    )


def finding_tree(message: flows_pb2.FlowDiagnostic) -> dict[str, Any]:
    """Decode a finding. A level of a later version counts as an error."""
    tree: dict[str, Any] = {
        "kind": message.kind,
        "code": message.code,
        "level": _NAMES.get(message.level, "error"),
        "formatted": message.message,
    }
    if message.data_json:
        tree["data"] = decode(message.data_json)
    if message.path:
        tree["path"] = message.path
    if message.experimental:
        tree["experimental"] = True
    return tree


def worst_first(trees: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return findings with errors before warnings, otherwise in order."""
    return sorted(trees, key=lambda tree: tree["level"] == "warning")


def findings_detail(trees: Sequence[dict[str, Any]], bytes_max: int) -> flows_pb2.FlowFindings:
    """Return the findings of a refusal, as many as fit."""
    detail = flows_pb2.FlowFindings()
    for number, tree in enumerate(worst_first(trees)):
        message = finding_message(tree)
        message.message = message.message[:TEXT_CHARS_MAX]
        detail.diagnostics.append(message)
        if detail.ByteSize() > bytes_max:
            del detail.diagnostics[-1]
            detail.left_out = len(trees) - number
            break
    return detail


def findings_tree(detail: flows_pb2.FlowFindings) -> dict[str, Any]:
    """Decode the findings of a refusal, as `Diagnostics.to_tree` returns them."""
    trees = [finding_tree(message) for message in detail.diagnostics]
    levels = [tree["level"] for tree in trees]
    counts = {f"num{level.capitalize()}": levels.count(level) for level in ("fatal", "error", "warning")}
    return {"diagnostics": trees, **counts} | ({"leftOut": detail.left_out} if detail.left_out else {})


__all__ = ["finding_message", "finding_tree", "findings_detail", "findings_tree", "worst_first"]
