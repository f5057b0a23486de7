"""The heart: a run as a state machine without I/O.

`apply(state, entry)` records a journaled fact. `decide(state, now_ms, routes, blobs)` says what to do next. Live
execution, replay after a crash and the tests use the same two functions; no clock, no randomness and no await is in
here: time, routes and the bytes of blobs come in as arguments.

The state has two parts:
- the *journaled* part (results, failed attempts, timers, sub-runs, the end) changes only through `apply`, and is the
  same for every owner that replays the same entries;
- the *volatile* part (what is in flight, what waits for a blob) belongs to this owner alone. Losing it costs nothing:
  `decide` finds the same work again.

Invariants, tested over a corpus of flows:
- a step has at most one `StepCompleted`; a completed step is never dispatched again;
- no step is dispatched before everything its input needs is complete;
- the final result does not depend on the order of completions, nor on where a crash cut the journal;
- an attempt number is never used twice for different dispatches of a step.

A run tree has one state: sub-runs (`eval`, `map`, `iterate`, flows that components evaluate) are *scopes* in it, with
one concurrency window over all of them. A step that waits for a sub-run lends its place in the window, so a parent
never holds what its child needs.

What this package deliberately does not do: choose a host, keep time, write, or know what a component is. The mapping
of code: `model` (the state and the actions), `applying` (facts in), `advancing` (what follows from facts), `deciding`
(what to do), `settling` (which fact a call's outcome is), `engine` (the components that run in here), `values`
(what expressions read and make), `views` (listings derived from journals).
"""

from stepflow.run.apply import apply, new_run
from stepflow.run.decide import decide
from stepflow.run.settle import find_step, settle, start_callback
from stepflow.run.state import (
    Action,
    Append,
    CancelCall,
    Dispatch,
    Phase,
    RunState,
    Scope,
    ScopeEnded,
    StepRun,
    WantBlob,
)

__all__ = [
    "Action",
    "Append",
    "CancelCall",
    "Dispatch",
    "Phase",
    "RunState",
    "Scope",
    "ScopeEnded",
    "StepRun",
    "WantBlob",
    "apply",
    "decide",
    "find_step",
    "new_run",
    "settle",
    "start_callback",
]
