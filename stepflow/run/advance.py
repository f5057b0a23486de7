"""Consequences of the entries: which steps are needed, which are ready, and the outcome of each item.

Deterministic and idempotent: the order of results changes when a step is found, never which steps are found. A needed
step stays needed until complete (conditions are decided once, results never change), so a replay finds every step of
the first owner.

A *reader* is an expression over results: the input of a step (numbered like the step) or the output (OUTPUT).
Expressions may read values in the blob store. A reader without a loaded value is set aside (`blocked`), the blob is
requested (`wanted`), and all other work continues.
"""

from __future__ import annotations

from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, Json
from stepflow.errors import Code, Failure
from stepflow.flow import MISSING, Env
from stepflow.flow.values import Stored, Value, part_at, size_of
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.failed_steps import failure_of_output
from stepflow.run.scope import Item, Scope, StepRun
from stepflow.run.state import FINISH, OUTPUT, Blobs, RunState
from stepflow.run.subruns import open_sub_run
from stepflow.run.values import composed, evaluate_output, load, load_at


def advance(state: RunState, blobs: Blobs) -> bool:
    """Work out all consequences. Return False if some wait for a blob."""
    if state.blocked:
        blocked, state.blocked = state.blocked, []
        for item, reader in blocked:
            if item.outcome is None:
                _retry_blocked(state, item, reader, blobs)

    while True:
        if state.dirty:
            item, step = state.dirty.popleft()
            _update_readers(state, item, step, blobs)
        elif state.opening:
            _open_items(state, state.opening.popleft(), blobs)
        elif state.unopened:
            if not open_sub_run(state, *state.unopened[0], blobs):
                return False
            state.unopened.popleft()
        else:
            return not state.blocked


def _retry_blocked(state: RunState, item: Item, reader: int, blobs: Blobs) -> None:
    if reader != FINISH:
        _examine(state, item, reader, blobs)
    _conclude_item(state, item, blobs)


def _update_readers(state: RunState, item: Item, step: int, blobs: Blobs) -> None:
    """Count a completed step off for its readers, and examine the readers that wait for no other step."""
    item.dirty -= 1
    if item.outcome is not None:
        return

    missing = item.missing
    for reader in item.waiters.pop(step, ()):
        left = missing[reader] - 1
        if left:
            missing[reader] = left
        else:
            del missing[reader]
            _examine(state, item, reader, blobs)
    _conclude_item(state, item, blobs)


def _open_items(state: RunState, scope: Scope, blobs: Blobs) -> None:
    """Open as many items as the scope's own bound allows, or all without a bound."""
    while len(scope.items) < len(scope.inputs):
        if scope.concurrency_max and len(scope.items) - scope.items_done >= scope.concurrency_max:
            return
        item = _new_item(scope)
        if isinstance(item.env.input, Stored):
            state.stored = True

        for step in scope.plan.must_execute:
            _require(state, item, step, blobs)
        _examine(state, item, OUTPUT, blobs)
        _conclude_item(state, item, blobs)

    if not scope.inputs:
        _end_scope(state, scope)


def _new_item(scope: Scope) -> Item:
    index = len(scope.items)
    results: list[Json | Failure | None] = [None] * len(scope.plan.steps)
    item = Item(scope, index, Env(scope.inputs[index], results, scope.variables, scope.value_bytes_max))
    scope.items.append(item)
    return item


def open_all_items(scope: Scope) -> None:
    """Create the missing items of an ending scope, so that each input gets an outcome."""
    while len(scope.items) < len(scope.inputs):
        _new_item(scope)


def _require(state: RunState, item: Item, step: int, blobs: Blobs) -> None:
    if step not in item.seen:
        item.seen.add(step)
        item.open += 1
        _examine(state, item, step, blobs)


def _examine(state: RunState, item: Item, reader: int, blobs: Blobs) -> None:
    """Find the results that a reader still needs; without any, a step becomes ready.

    Iterative, because chains of thousands of steps are legal and would exhaust the stack.
    """
    plan, results, seen = item.scope.plan, item.env.results, item.seen
    pending = [reader]
    while pending:
        reader = pending.pop()

        # 1. Which results are missing?
        expr = plan.output if reader == OUTPUT else plan.steps[reader].input
        if not expr.lazy:
            needed = [ref for ref in expr.refs if results[ref] is None]
        elif state.stored and not load(state, item, expr, blobs):
            state.blocked.append((item, reader))
            continue
        else:
            needed = expr.needed(item.env)

        # 2. Wait for them; examine the steps that no other reader has needed before.
        if needed:
            item.missing[reader] = len(needed)
            for ref in needed:
                item.waiters.setdefault(ref, []).append(reader)
                if ref not in seen:
                    seen.add(ref)
                    item.open += 1
                    pending.append(ref)

        # 3. None is missing.
        elif reader == OUTPUT:
            item.output_ready = True
        else:
            step = StepRun(item, reader, state.adoptions)
            item.active[reader] = step
            state.fresh.append(step)


def _conclude_item(state: RunState, item: Item, blobs: Blobs) -> None:
    """Set the item's outcome if the item is complete, or if no remaining work can complete it."""
    if item.outcome is not None:
        return

    if item.open == 0 and item.output_ready:
        if state.composes:
            _conclude_composed(state, item, blobs)
            return
        output = item.scope.plan.output
        if state.stored and not load(state, item, output, blobs):
            state.blocked.append((item, FINISH))
            return
        value = composed(output.to_json(item.env), "the output")
        if isinstance(value, Failure):
            end_item(state, item, failure_of_output(state, item, value))
        else:
            end_item(state, item, _outcome(state, item, value))

    elif not item.active and not item.dirty and not any(blocked is item for blocked, _ in state.blocked):
        steps = item.scope.plan.steps
        waiting = sorted(steps[reader].id for reader in item.missing if reader != OUTPUT)
        end_item(
            state,
            item,
            Failure(
                Code.ORCHESTRATOR_ERROR,
                "the flow cannot go on: nothing is running, and these steps wait for each other: " + ", ".join(waiting),
            ),
        )


def _conclude_composed(state: RunState, item: Item, blobs: Blobs) -> None:
    """Set the outcome of a complete item, from engine version 2 on."""
    scope = item.scope
    outcome = evaluate_output(state, item, blobs)
    if outcome is None:
        state.blocked.append((item, FINISH))
        return
    if isinstance(outcome, Failure):
        end_item(state, item, failure_of_output(state, item, outcome))
        return

    if scope.kind == pb.SUB_RUN_KIND_ITERATE:
        # Now, because what counts of it must be known without a blob once the scope has ended.
        if not all(load_at(state, outcome, (name,), blobs) for name in _ITERATED):
            state.blocked.append((item, FINISH))
            return
        scope.iterated = iterated = _iterated(outcome)
        if iterated is not None and iterated[0] == "next" and (size := size_of(iterated[1])) > PAYLOAD_BYTES_MAX:
            problem = f"it is {size:,} bytes; the limit is {PAYLOAD_BYTES_MAX:,}"
            outcome = Failure(Code.EXPRESSION_FAILURE, f"the next input cannot be used: {problem}")
            scope.iterated = None
    end_item(state, item, outcome)


_ITERATED = ("result", "next")
"""Members of an iteration's output; the first one that is set counts."""


def _iterated(outcome: Json) -> tuple[str, Value] | None:
    """Return the member of an iteration's output that counts; None if there is none. The paths must be loaded."""
    for name in _ITERATED:
        value = part_at(outcome, (name,))
        if value is not MISSING:
            return name, value
    return None


def _outcome(state: RunState, item: Item, value: bytes) -> Json:
    """Return the value of an item as its outcome; note a large one, which must not stay in memory."""
    scope = item.scope
    if len(value) > INLINE_BYTES_MAX and scope.parent is None:
        state.large_outcomes.append(item)
    elif scope.kind == pb.SUB_RUN_KIND_MAP:
        scope.outcome_bytes += len(value)
        if scope.outcome_bytes > PAYLOAD_BYTES_MAX:
            return Json(b"null")  # never read: the map fails for the size of its results
    return Json(value)


def end_item(state: RunState, item: Item, outcome: Json | Failure) -> None:
    """Record the item's outcome, and end the scope after its last item."""
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
    if scope.kind == pb.SUB_RUN_KIND_CALLBACK:
        state.reclaim_slot(parent)
    else:
        state.due.append(parent)
