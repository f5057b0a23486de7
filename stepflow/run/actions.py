"""The closed list of actions returned by `decide`. Data only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from stepflow.mesh.v1 import journal_pb2
    from stepflow.routing.table import Target
    from stepflow.run.scope import Scope, StepRun


class Append(msgspec.Struct, frozen=True):
    """Journal the entry: move a large payload into the blob store, apply the entry, call `decide` again."""

    entry: journal_pb2.Entry


class Dispatch(msgspec.Struct, frozen=True):
    """Call a component. Exactly one of `input` and `blob` is set."""

    step: StepRun
    attempt: int
    target: Target
    input: bytes
    blob: str = ""


class CancelCall(msgspec.Struct, frozen=True):
    """Cancel the step's call in flight, whose result is no longer needed."""

    step: StepRun


class ScopeEnded(msgspec.Struct, frozen=True):
    """Answer callers outside the engine that wait for the sub-run: it has ended."""

    scope: Scope


class WantBlob(msgspec.Struct, frozen=True):
    """Load the bytes of a blob. `shared`: a user supplied the id (a flow for `eval`)."""

    blob: str
    shared: bool = False
    bytes: int = 0
    """Length of the blob; 0 if unknown."""


Action = Append | Dispatch | CancelCall | ScopeEnded | WantBlob
