"""What follows from the facts: which steps are needed, which are ready, what an item's outcome is.

Deterministic and idempotent: the order in which results arrive changes only when something is found, never what.
A needed step stays needed until it is complete (conditions are decided once, results never change), so a replay finds
every step that the first owner had found.

Expressions may read values that lie in the blob store. Where one is not at hand, the expression is set aside
(`blocked`), the blob is asked for (`wanted`), and everything else goes on.
"""

from __future__ import annotations

from stepflow.codec import Json
from stepflow.errors import Code, Failure
from stepflow.flow import Env
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.builtins import open_sub_run
from stepflow.run.state import FINISH, OUTPUT, Blobs, Item, Phase, RunState, Scope, StepRun, Stored
from stepflow.run.values import composed, load


def advance(state: RunState, blobs: Blobs) -> bool:
    """Work out everything that follows. Return whether it is all done: false while a blob is wanted for it."""
    if state.blocked:
        blocked, state.blocked = state.blocked, []
        for item, who in blocked:
            if item.outcome is None:
                _retry_blocked(state, item, who, blobs)
    while True:
        if state.dirty:
            item, step = state.dirty.popleft()
            _tell_waiters(state, item, step, blobs)
        elif state.opening:
            _open_items(state, state.opening.popleft(), blobs)
        elif state.unopened:
            if not open_sub_run(state, *state.unopened[0], blobs):
                return False
            state.unopened.popleft()
        else:
            return not state.blocked


def _retry_blocked(state: RunState, item: Item, who: int, blobs: Blobs) -> None:
    if who != FINISH:
        _examine(state, item, who, blobs)
    _conclude(state, item, blobs)


def _tell_waiters(state: RunState, item: Item, step: int, blobs: Blobs) -> None:
    item.dirty -= 1
    if item.outcome is not None:
        return
    missing = item.missing
    for who in item.waiters.pop(step, ()):
        left = missing[who] - 1
        if left:
            missing[who] = left
        else:
            del missing[who]
            _examine(state, item, who, blobs)
    _conclude(state, item, blobs)


def _open_items(state: RunState, scope: Scope, blobs: Blobs) -> None:
    """Open as many items as the scope's own bound allows; all of them where it has none."""
    while len(scope.items) < len(scope.inputs):
        if scope.concurrency_max and len(scope.items) - scope.items_done >= scope.concurrency_max:
            return
        item = _new_item(scope)
        if isinstance(item.env.input, Stored):
            state.stored = True
        for step in scope.plan.must_execute:
            _require(state, item, step, blobs)
        _examine(state, item, OUTPUT, blobs)
        _conclude(state, item, blobs)
    if not scope.inputs:
        _end_scope(state, scope)


def _new_item(scope: Scope) -> Item:
    index = len(scope.items)
    item = Item(scope, index, Env(scope.inputs[index], [None] * len(scope.plan.steps), scope.variables))
    scope.items.append(item)
    return item


def open_all_items(scope: Scope) -> None:
    """Give every input of an ending scope an item, so that each gets an outcome."""
    while len(scope.items) < len(scope.inputs):
        _new_item(scope)


def _require(state: RunState, item: Item, step: int, blobs: Blobs) -> None:
    if step not in item.seen:
        item.seen.add(step)
        item.open += 1
        _examine(state, item, step, blobs)


def _examine(state: RunState, item: Item, who: int, blobs: Blobs) -> None:
    """Find what a step (or the output) still needs; with nothing left to need it becomes ready.

    Iterative, because chains of thousands of steps are legal and would exhaust the stack."""
    plan, results, seen = item.scope.plan, item.env.results, item.seen
    pending = [who]
    while pending:
        who = pending.pop()
        expr = plan.output if who == OUTPUT else plan.steps[who].input
        if not expr.lazy:
            needed = [ref for ref in expr.refs if results[ref] is None]
        elif state.stored and not load(state, item, expr, blobs):
            state.blocked.append((item, who))
            continue
        else:
            needed = expr.needed(item.env)
        if needed:
            item.missing[who] = len(needed)
            for ref in needed:
                item.waiters.setdefault(ref, []).append(who)
                if ref not in seen:
                    seen.add(ref)
                    item.open += 1
                    pending.append(ref)
        elif who == OUTPUT:
            item.output_ready = True
        else:
            step = StepRun(item, who, state.adoptions)
            item.active[who] = step
            state.fresh.append(step)


def _conclude(state: RunState, item: Item, blobs: Blobs) -> None:
    """Give the item its outcome if it has come to its end, or can never come to one."""
    if item.outcome is not None:
        return
    if item.open == 0 and item.output_ready:
        output = item.scope.plan.output
        if state.stored and not load(state, item, output, blobs):
            state.blocked.append((item, FINISH))
            return
        value = composed(output.to_json(item.env), "the output")
        end_item(state, item, value if isinstance(value, Failure) else Json(value))
    elif not item.active and not item.dirty and not any(blocked is item for blocked, _ in state.blocked):
        steps = item.scope.plan.steps
        waiting = sorted(steps[who].id for who in item.missing if who != OUTPUT)
        end_item(
            state,
            item,
            Failure(
                Code.ORCHESTRATOR_ERROR,
                "the flow cannot go on: nothing is running, and these steps wait for each other: " + ", ".join(waiting),
            ),
        )


def end_item(state: RunState, item: Item, outcome: Json | Failure) -> None:
    scope = item.scope
    item.outcome = outcome
    item.completed_at_ms = state.last_at_ms
    item.waiters.clear()
    scope.items_done += 1
    if scope.ended:
        _end_scope(state, scope)
    elif len(scope.items) < len(scope.inputs) and state.status is None:
        state.opening.append(scope)


def _end_scope(state: RunState, scope: Scope) -> None:
    scope.ended_at_ms = state.last_at_ms
    state.scopes_live -= 1
    parent = scope.parent
    if parent is None:
        return
    state.scopes_ended.append(scope)
    if scope.kind != pb.SUB_RUN_KIND_CALLBACK:
        state.due.append(parent)
        return
    parent.callbacks_live -= 1
    if not parent.callbacks_live and parent.phase is Phase.IN_FLIGHT:
        state.places_taken += 1
