"""Inputs and results of expressions: loaded from the blob store, and bounded once composed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, composed_problem
from stepflow.errors import Code, Failure
from stepflow.flow.nodes import TOO_LARGE
from stepflow.run.secrets import note_marked
from stepflow.run.state import WANTED_BYTES_MAX, Blobs, RunState, Stored

if TYPE_CHECKING:
    from stepflow.flow import Expr
    from stepflow.run.scope import Item, StepRun

REPLAY_BYTES_MAX = 16 * 1024 * 1024
"""Values kept loaded between two entries of a replay."""


def evaluate_input(state: RunState, step: StepRun, blobs: Blobs) -> bytes | Failure | None:
    """Evaluate the step's input expression; None until its blobs are loaded."""
    item = step.item
    expr = item.scope.plan.steps[step.index].input
    if state.stored and not load(state, item, expr, blobs):
        return None
    return composed(expr.to_json(item.env), f"the input of step {step.id!r}")


def composed(value: bytes | Failure, what: str) -> bytes | Failure:
    """Return an evaluated value, or a failure if the value exceeds the limits of size or depth."""
    if value is TOO_LARGE:
        return Failure(TOO_LARGE.code, f"{what} cannot be used: {TOO_LARGE.message}")
    if isinstance(value, Failure):
        return value
    problem = composed_problem(value)
    return value if problem is None else Failure(Code.EXPRESSION_FAILURE, f"{what} cannot be used: {problem}")


def load(state: RunState, item: Item, expr: Expr, blobs: Blobs) -> bool:
    """Load the stored values read by `expr`. Return False until all blobs are loaded."""
    env = item.env
    ready = True
    if isinstance(env.input, Stored) and _reads_input(item, expr) and (ready := load_value(state, env.input, blobs)):
        note_marked(item)
    for ref in expr.touched(env):
        value = env.results[ref]
        if isinstance(value, Stored):
            ready = load_value(state, value, blobs) and ready
    return ready


def _reads_input(item: Item, expr: Expr) -> bool:
    """Return True if the input must be loaded: for the expression, or once for its marked values."""
    return expr.reads_input or (item.scope.plan.marks_secrets and item.marked is None)


def load_value(state: RunState, value: Stored, blobs: Blobs) -> bool:
    """Load a stored value. Return False until the blob is loaded."""
    if value.loaded:
        return True
    content = required_blob(state, value.blob, blobs, size=value.blob_bytes)
    if content is None:
        return False

    value.load(content)
    state.loaded.append(value)
    return True


def required_blob(state: RunState, blob: str, blobs: Blobs, *, shared: bool = False, size: int = 0) -> bytes | None:
    """Return a blob that the run cannot continue without. If not loaded, request the blob and return None.

    `shared`: a user supplied the id. `size`: its length, 0 if unknown. Above `WANTED_BYTES_MAX` nothing more is
    requested: the reader stays blocked and asks again. If the blob does not exist, `decide` ends the run.
    """
    content = blobs.get(blob)
    if content is None:
        if blob in blobs:
            state.lost_blob = blob
        else:
            size = size or (INLINE_BYTES_MAX if shared else PAYLOAD_BYTES_MAX)
            if not state.wanted:
                state.wanted_bytes = {}
            elif blob not in state.wanted and sum(state.wanted_bytes.values()) + size > WANTED_BYTES_MAX:
                return None
            state.wanted_bytes[blob] = size
            # A search for a blob of the run's own includes the shared ones, so that it serves both requests.
            state.wanted[blob] = shared and state.wanted.get(blob, True)
    return content


def unload_large(state: RunState) -> None:
    """Drop the bytes of stored values between two entries of a replay, if they are many."""
    if state.loaded and sum(len(value.raw) for value in state.loaded) > REPLAY_BYTES_MAX:
        unload(state)


def unload(state: RunState) -> None:
    """Drop the bytes of stored values again: a run must not keep the content of the blob store in memory."""
    for value in state.loaded:
        value.unload()
    state.loaded.clear()
