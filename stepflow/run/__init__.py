"""The heart: a run as a state machine without I/O.

`apply(state, entry)` records a journaled entry; `decide(state, now_ms, routes, blobs)` returns the next actions. Live
execution, replay after a crash and the tests use the same two functions. The package has no
clock, no randomness and no await: time, routes and the bytes of blobs are arguments.

The state has two parts:
- the *journaled* part (adoptions, failed attempts, timers, signals, the end) changes only through `apply`, and is the
  same after every replay of the same entries;
- the *volatile* part (calls in flight, queues, wanted blobs) belongs to one owner and may be lost: `decide` finds the
  same work again.

Invariants, tested over a corpus of flows:
- a step has at most one `StepCompleted`; a completed step is never dispatched again;
- no step is dispatched before all results that its input needs are complete;
- the final result depends neither on the order of completions nor on where a crash cut the journal;
- an attempt number is never used twice for different dispatches of a step;
- code outside the package changes the state only through methods (`tests/unit/run/test_who_writes.py`).

A run tree has a single state: sub-runs (`eval`, `map`, `iterate`, flows started by components) are *scopes* of the
tree, under a common concurrency window. A step with an open sub-run lends its slot of the window, so a parent never
holds the slot that its child needs.

Limits: the package chooses no host, keeps no time, does no I/O, and knows components only by path.

Modules: `phases` (transitions of a step), `state` and `scope`, `apply` (entries in), `advance` (consequences of
entries), `decide` and `actions` (actions out), `settle` (from outcomes to entries), `subruns`, `builtins` (engine
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
