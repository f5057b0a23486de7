"""Values of a run as expressions read and make them: brought from the blob store, bounded when composed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.codec import composed_problem
from stepflow.errors import Code, Failure
from stepflow.run.state import Blobs, Item, RunState, Stored

if TYPE_CHECKING:
    from stepflow.flow import Expr


def composed(value: bytes | Failure, what: str) -> bytes | Failure:
    """Refuse a value that expressions have made larger or deeper than any value may be."""
    if isinstance(value, Failure):
        return value
    problem = composed_problem(value)
    return value if problem is None else Failure(Code.EXPRESSION_FAILURE, f"{what} cannot be used: {problem}")


def load(state: RunState, item: Item, expr: Expr, blobs: Blobs) -> bool:
    """Make the stored values that `expr` reads available; return whether all are."""
    env = item.env
    ready = load_value(state, env.input, blobs) if isinstance(env.input, Stored) else True
    for ref in expr.touched(env):
        value = env.results[ref]
        if isinstance(value, Stored):
            ready = load_value(state, value, blobs) and ready
    return ready


def load_value(state: RunState, value: Stored, blobs: Blobs) -> bool:
    if value.loaded:
        return True
    if value.blob not in blobs:
        state.wanted.setdefault(value.blob, False)
        return False
    content = blobs[value.blob]
    if content is None:
        state.lost_blob = value.blob  # `decide` ends the run: its own result is gone
        return False
    value.load(content)
    state.loaded.append(value)
    return True


def unload(state: RunState) -> None:
    """Drop the bytes of stored values again: a run must not keep in memory what it put into the blob store."""
    for value in state.loaded:
        value.unload()
    state.loaded.clear()
