"""Inputs and results of expressions: loaded from the blob store, and bounded once composed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.codec import (
    INLINE_BYTES_MAX,
    JSON_DEPTH_MAX,
    PAYLOAD_BYTES_MAX,
    RESULT_BYTES_MAX,
    Json,
    composed_problem,
)
from stepflow.errors import Code, Failure
from stepflow.flow.nodes import TOO_LARGE
from stepflow.flow.values import NULL_BYTES_MAX, PIECES_MAX, Composed, Stored, Value, to_store, unloaded, unloaded_at
from stepflow.run.secrets import note_marked
from stepflow.run.state import WANTED_BYTES_MAX, Blobs, RunState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.flow import Env, Expr
    from stepflow.json_problems import Part
    from stepflow.run.scope import Item, StepRun

REPLAY_BYTES_MAX = 16 * 1024 * 1024
"""Values kept loaded between two entries of a replay."""


def evaluate_input(state: RunState, step: StepRun, blobs: Blobs) -> bytes | Failure | None:
    """Evaluate the step's input expression; None until its blobs are loaded."""
    item = step.item
    expr = item.scope.plan.steps[step.index].input
    if state.stored:
        if not load(state, item, expr, blobs):
            return None
        if state.composes:
            return _joined_input(state, step, expr.to_value(item.env), blobs)

    value = expr.to_json(item.env)
    if value is TOO_LARGE and state.composes:
        return _joined_input(state, step, expr.to_value(item.env), blobs)
    return composed(value, f"the input of step {step.id!r}")


def _joined_input(state: RunState, step: StepRun, value: Value | Failure, blobs: Blobs) -> bytes | Failure | None:
    """Return a step's input as one text, measured before it is joined; None until its blobs are loaded."""
    what = f"the input of step {step.id!r}"
    if isinstance(value, Failure):
        return _too_much(what) if value is TOO_LARGE else value
    if isinstance(value, bytes):
        return composed(value, what)
    if value.size > PAYLOAD_BYTES_MAX:
        return Failure(
            Code.EXPRESSION_FAILURE,
            f"{what} cannot be used: it is {value.size:,} bytes; the limit is {PAYLOAD_BYTES_MAX:,}: read only a "
            "part of it with a path, or put large data into blobs (put_blob) and pass their ids",
        )
    text = joined(state, value, blobs)
    return None if text is None else composed(text, what)


def joined(state: RunState, value: Value, blobs: Blobs) -> bytes | None:
    """Return the text of a value of at most `PAYLOAD_BYTES_MAX`; None until its blobs are loaded."""
    if isinstance(value, bytes):
        return value
    ready = [load_value(state, source, blobs) for source in unloaded(value)]
    return value.raw if all(ready) else None


def evaluate_output(state: RunState, item: Item, blobs: Blobs) -> Json | Failure | None:
    """Evaluate the item's output without a copy of large results; None until the blobs that it looks into are loaded.

    From engine version 2 on.
    """
    expr = item.scope.plan.output
    if state.stored and not load(state, item, expr, blobs):
        return None

    value = expr.to_value(item.env)
    if isinstance(value, Composed):
        if value.too_deep:
            return Failure(
                Code.EXPRESSION_FAILURE, f"the output cannot be used: it is nested deeper than {JSON_DEPTH_MAX} levels"
            )
        return _own_texts_stored(state, item, value)
    if isinstance(value, Json):
        return value
    if value is TOO_LARGE:
        return _too_much("the output")
    text = composed(value, "the output")
    return text if isinstance(text, Failure) else _own_text(state, item, text)


def _own_text(state: RunState, item: Item, text: bytes) -> Json:
    """Return a new text as a value. A large one is moved to the blob store, so that it does not stay in memory."""
    if len(text) <= INLINE_BYTES_MAX:
        item.scope.copied_bytes += len(text)
        return Json(text)
    value = to_store(text)
    state.unstored.append(value)
    state.stored = True
    return value


def _own_texts_stored(state: RunState, item: Item, value: Composed) -> Composed:
    item.scope.copied_bytes += sum(len(piece) for piece in value.pieces if isinstance(piece, bytes))
    if all(not isinstance(piece, bytes) or len(piece) <= INLINE_BYTES_MAX for piece in value.pieces):
        return value
    item.scope.copied_bytes -= sum(
        len(piece) for piece in value.pieces if isinstance(piece, bytes) and len(piece) > INLINE_BYTES_MAX
    )
    pieces = [
        _own_text(state, item, piece) if isinstance(piece, bytes) and len(piece) > INLINE_BYTES_MAX else piece
        for piece in value.pieces
    ]
    return Composed(pieces, value.levels)


def _too_much(what: str) -> Failure:
    problem = f"it is larger than {RESULT_BYTES_MAX:,} bytes, or has more than {PIECES_MAX:,} parts"
    return Failure(Code.EXPRESSION_FAILURE, f"{what} cannot be used: {problem}")


def composed(value: bytes | Failure, what: str) -> bytes | Failure:
    """Return an evaluated value, or a failure if the value exceeds the limits of size or depth."""
    if value is TOO_LARGE:
        return Failure(TOO_LARGE.code, f"{what} cannot be used: {TOO_LARGE.message}")
    if isinstance(value, Failure):
        return value
    problem = composed_problem(value)
    return value if problem is None else Failure(Code.EXPRESSION_FAILURE, f"{what} cannot be used: {problem}")


def load(state: RunState, item: Item, expr: Expr, blobs: Blobs) -> bool:
    """Load the stored values read by `expr`. Return False until all blobs are loaded.

    From engine version 2 on, these are the results that paths lead into, and those that may be null or false.
    """
    env = item.env
    ready = True
    if isinstance(env.input, Stored) and _reads_input(item, expr) and (ready := load_value(state, env.input, blobs)):
        note_marked(item)
    for ref in expr.touched(env):
        value = env.results[ref]
        if isinstance(value, Stored) and (not state.composes or value.size <= NULL_BYTES_MAX):
            ready = load_value(state, value, blobs) and ready
    return ready and (not state.composes or _load_inside(state, env, expr, blobs))


def _load_inside(state: RunState, env: Env, expr: Expr, blobs: Blobs) -> bool:
    """Load the stored values that the expression's paths lead into. Return False until all are loaded."""
    ready = True
    for ref, parts in expr.inside:
        value = env.results[ref]
        if isinstance(value, Json) and not load_at(state, value, parts, blobs):
            ready = False
    return ready


def load_at(state: RunState, value: Json, parts: Sequence[Part], blobs: Blobs) -> bool:
    """Load the stored value that a path leads into, if any. Return False until it is loaded."""
    source = unloaded_at(value, parts)
    return source is None or load_value(state, source, blobs)


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
