"""The closed list of actions that `decide` returns. Data only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from stepflow.mesh.v1 import journal_pb2
    from stepflow.routing.table import Target
    from stepflow.run.scope import Scope, StepRun


class Append(msgspec.Struct, frozen=True):
    """Journal this entry: move a large payload into the blob store, apply the entry, call `decide` again."""

    entry: journal_pb2.Entry


class Dispatch(msgspec.Struct, frozen=True):
    """Call a component. Exactly one of `input` and `blob` is set."""

    step: StepRun
    attempt: int
    target: Target
    input: bytes
    blob: str = ""


class CancelCall(msgspec.Struct, frozen=True):
    """Cancel the step's call in flight: its result is no longer needed."""

    step: StepRun


class ScopeEnded(msgspec.Struct, frozen=True):
    """A sub-run has ended: answer the callers outside the engine that wait for it."""

    scope: Scope


class WantBlob(msgspec.Struct, frozen=True):
    """Load the bytes of this blob. `shared`: a user supplied the id (a flow for `eval`), so it is not the run's own."""

    blob: str
    shared: bool = False


Action = Append | Dispatch | CancelCall | ScopeEnded | WantBlob
