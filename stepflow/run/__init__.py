"""The heart: a run as a state machine without I/O.

`apply(state, entry)` records a journaled entry; `decide(state, now_ms, routes, blobs)` returns the next actions. Live
execution, replay after a crash and the tests use the same two functions. There is no clock, no randomness and no await
in this package: time, routes and the bytes of blobs are arguments.

The state has two parts:
- the *journaled* part (adoptions, failed attempts, timers, signals, the end) changes only through `apply`, and is the
  same for every owner that replays the same entries;
- the *volatile* part (calls in flight, queues, wanted blobs) belongs to one owner. Losing it costs nothing: `decide`
  finds the same work again.

Invariants, tested over a corpus of flows:
- a step has at most one `StepCompleted`; a completed step is never dispatched again;
- no step is dispatched before everything its input needs is complete;
- the final result depends neither on the order of completions nor on where a crash cut the journal;
- an attempt number is never used twice for different dispatches of a step;
- code outside this package changes the state only through its methods (`tests/unit/test_architecture.py`).

A run tree has one state: sub-runs (`eval`, `map`, `iterate`, flows that components evaluate) are *scopes* in it, with
one concurrency window over all of them. A step that waits for a sub-run lends its slot of the window, so a parent
never holds the slot that its child needs.

Limits: this package chooses no host, keeps no time, writes nothing, and does not know what a component is.

Modules: `phases` (transitions of a step), `state` and `scope`, `apply` (entries in), `advance` (their consequences),
`decide` and `actions` (actions out), `settle` (from an outcome to its entry), `subruns`, `builtins` (engine
components), `values` (composed and stored values), `entries` (conversions), `views` (listings derived from journals).
"""

from stepflow.run.actions import Action, Append, CancelCall, Dispatch, ScopeEnded, WantBlob
from stepflow.run.apply import apply, new_run
from stepflow.run.decide import decide
from stepflow.run.phases import Phase
from stepflow.run.scope import Scope, StepRun
from stepflow.run.settle import find_step, settle
from stepflow.run.state import RunState
from stepflow.run.subruns import start_callback

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
