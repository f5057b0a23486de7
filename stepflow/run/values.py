"""Values that expressions read and make: loaded from the blob store, and bounded once composed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.codec import composed_problem
from stepflow.errors import Code, Failure
from stepflow.run.state import Blobs, RunState, Stored

if TYPE_CHECKING:
    from stepflow.flow import Expr
    from stepflow.run.scope import Item, StepRun


def evaluate_input(state: RunState, step: StepRun, blobs: Blobs) -> bytes | Failure | None:
    """Evaluate the step's input expression; None while it waits for a blob."""
    item = step.item
    expr = item.scope.plan.steps[step.index].input
    if state.stored and not load(state, item, expr, blobs):
        return None
    return composed(expr.to_json(item.env), f"the input of step {step.id!r}")


def composed(value: bytes | Failure, what: str) -> bytes | Failure:
    """Return an evaluated value, or a failure if it is larger or deeper than any value may be."""
    if isinstance(value, Failure):
        return value
    problem = composed_problem(value)
    return value if problem is None else Failure(Code.EXPRESSION_FAILURE, f"{what} cannot be used: {problem}")


def load(state: RunState, item: Item, expr: Expr, blobs: Blobs) -> bool:
    """Load the stored values that `expr` reads. Return False while some of them wait for a blob."""
    env = item.env
    ready = load_value(state, env.input, blobs) if isinstance(env.input, Stored) else True
    for ref in expr.touched(env):
        value = env.results[ref]
        if isinstance(value, Stored):
            ready = load_value(state, value, blobs) and ready
    return ready


def load_value(state: RunState, value: Stored, blobs: Blobs) -> bool:
    """Load one stored value. Return False while it waits for its blob."""
    if value.loaded:
        return True
    content = required_blob(state, value.blob, blobs)
    if content is None:
        return False

    value.load(content)
    state.loaded.append(value)
    return True


def required_blob(state: RunState, blob: str, blobs: Blobs, *, shared: bool = False) -> bytes | None:
    """Return a blob without which the run cannot continue. Until it is loaded, request it and return None.

    `shared`: a user supplied the id. If the blob does not exist, `decide` ends the run.
    """
    content = blobs.get(blob)
    if content is None:
        if blob in blobs:
            state.lost_blob = blob
        else:
            # A search for a blob of the run's own includes the shared ones, so that it serves both requests.
            state.wanted[blob] = shared and state.wanted.get(blob, True)
    return content


def unload(state: RunState) -> None:
    """Drop the bytes of stored values again: a run must not keep in memory what is in the blob store."""
    for value in state.loaded:
        value.unload()
    state.loaded.clear()
