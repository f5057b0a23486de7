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

Modules:
- `state`: the state of a run tree.
- `scope`: scopes, items and steps of the tree.
- `phases`: the transitions of a step.
- `apply`: entries in.
- `advance`: the consequences of entries: needed steps, outputs of items.
- `decide`: actions out.
- `actions`: the list of actions.
- `replay`: the replay of a journal in pieces.
- `secrets`: marked values, removed from failures and progress texts.
- `large_values`: large values moved to the blob store.
- `failed_steps`: which step a failure belongs to, and steps skipped because of it.
- `settle`: from the outcome of an attempt to an entry: the step's end, or a retry.
- `subruns`: sub-runs, and the flows behind them.
- `derived`: results derived from the outcomes of sub-runs.
- `builtins`: the components inside the engine.
- `values`: inputs and results, loaded from blobs and bounded.
- `entries`: conversions to and from the journal's protobuf.
- `views`: listings and events derived from entries.
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
