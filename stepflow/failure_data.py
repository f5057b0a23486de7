"""The members that the mesh adds to the `data` of a failure: the failed step, and the trace of the exception.

- The step stands in the members `step`, `component`, `attempt`, `host` and `expression`, next to the component's own.
  If the component uses one of these names itself, all five stand in the member `stepflow` instead.
- Data that are no object become the member `data` of one.
- A trace is what a server tells of an exception: `frames`, `causes`, `traceback`, or the end of its `stderr`.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

STEP_MEMBERS = ("step", "component", "attempt", "host", "expression")
OWN_MEMBER = "stepflow"
TRACE_MEMBERS = ("frames", "causes", "traceback", "stderr")

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)


class FailedStep(msgspec.Struct, frozen=True):
    """The step that failed. Empty members do not apply."""

    step: str = ""
    """Path of the step in its run, such as `7/summaries[0]/ask`; empty for the output of a run of one."""
    component: str = ""
    attempt: int = 0
    """1-based; 0 if the step was never dispatched."""
    host: str = ""
    expression: str = ""
    """Path of a failed expression in the flow, such as `steps[2].input.name`."""


def with_step(data: bytes, failed: FailedStep) -> bytes:
    """Return the data of a failure, an object in compact JSON, with the step that failed."""
    own = {name: value for name in STEP_MEMBERS if (value := getattr(failed, name))}
    members = _members(data)
    members.pop(OWN_MEMBER, None)
    if any(name in members for name in STEP_MEMBERS):
        return msgspec.json.encode({**members, OWN_MEMBER: own})
    return msgspec.json.encode({**members, **own})


def failed_step(data: bytes | Mapping[str, Any] | None) -> FailedStep | None:
    """Return the step in the data of a failure; None if the data name none."""
    if not data or (isinstance(data, bytes) and b'"component"' not in data and b'"expression"' not in data):
        return None
    try:
        members = msgspec.json.decode(data) if isinstance(data, bytes) else data
    except _DECODE_ERRORS:
        return None

    if isinstance(members, Mapping) and isinstance(members.get(OWN_MEMBER), Mapping):
        members = members[OWN_MEMBER]
    if not isinstance(members, Mapping) or not (members.get("component") or members.get("expression")):
        return None

    attempt = members.get("attempt")
    texts = {name: members.get(name) for name in STEP_MEMBERS if name != "attempt"}
    if not all(isinstance(text, str | None) for text in texts.values()):
        return None
    return FailedStep(
        **{name: text or "" for name, text in texts.items()}, attempt=int(attempt) if isinstance(attempt, int) else 0
    )


def component_data(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a failure without the step and the trace."""
    own = OWN_MEMBER in members
    added = {OWN_MEMBER, *TRACE_MEMBERS, *(() if own or failed_step(members) is None else STEP_MEMBERS)}
    return {name: member for name, member in members.items() if name not in added}


def with_stderr(data: bytes, text: str) -> bytes:
    """Return the data of a failure with the end of its server's stderr, unless it has another trace."""
    if not text or trace_bytes(data):
        return data
    return msgspec.json.encode({**_members(data), "stderr": text})


def trace_bytes(data: bytes) -> int:
    """Return the length of a failure's trace."""
    if not any(b'"%b"' % name.encode() in data for name in TRACE_MEMBERS):
        return 0
    return sum(len(raw) for name, raw in _members(data).items() if name in TRACE_MEMBERS)


def without_trace(data: bytes) -> bytes:
    """Return the data of a failure without its trace."""
    if not trace_bytes(data):
        return data
    left = {name: raw for name, raw in _members(data).items() if name not in TRACE_MEMBERS}
    return msgspec.json.encode(left) if left else b""


def _members(data: bytes) -> dict[str, msgspec.Raw]:
    if not data or data == b"null":
        return {}
    try:
        return _decode_members(data)
    except _DECODE_ERRORS:
        return {"data": msgspec.Raw(data)}


__all__ = ["FailedStep", "component_data", "failed_step", "trace_bytes", "with_stderr", "with_step", "without_trace"]
