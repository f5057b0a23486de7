"""Recorded journals: what the engine of one tree wrote, and what it made of them.

    PYTHONPATH=CHECKOUT:CHECKOUT/tests python -P tests/support/journals.py tests/data/journals/VERSION

writes the records with the engine of a checkout. A record holds a flow, the entries as bytes, and for several prefixes
of the journal the state that a replay gives and how the run continues from there. Only names that every tree has are
used here; modules that have moved are found by each of their names.
"""

from __future__ import annotations

import base64
import importlib
import json
import random
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepflow.codec import decode
from stepflow.errors import Failure
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.views import list_steps

if TYPE_CHECKING:
    from stepflow.run import RunState
    from support.engine import World

SEED = 20
CHOICES = 40
ADOPTIONS = 8
"""More than an owner may cost a run without progress."""

ENTRY_KINDS = {
    "adopted",
    "step_completed",
    "attempt_failed",
    "timer_set",
    "sub_run_started",
    "inbox_taken",
    "run_completed",
    "signal_awaited",
    "survived",
}
"""The records hold entries of all these kinds."""


def summary(state: RunState, journal: list[bytes]) -> dict[str, Any]:
    """Return the journaled part of a state, and the listing of its steps, as JSON."""
    return {
        "status": None if state.status is None else pb.RunStatus.Name(state.status),
        "epoch": state.epoch,
        "adoptions": [state.adoptions, state.adoptions_in_a_row, state.adoptions_fruitless],
        "entries": state.entries_journaled,
        "last_at_ms": state.last_at_ms,
        "next_wake_ms": state.next_wake_ms(),
        "cancelled": state.cancelled,
        "inbox_taken": sorted(state.inbox_taken),
        "signals": [[item, name, [_shown(each) for each in queue]] for (item, name), queue in state.signals.items()],
        "scopes": [_scope(scope) for scope in state.scopes],
        "steps": [_step(view) for view in list_steps(state, (pb.Entry.FromString(raw) for raw in journal))],
    }


def _scope(scope: Any) -> dict[str, Any]:
    return {
        "key": scope.key,
        "run_id": scope.run_id,
        "depth": scope.depth,
        "ended": scope.ended,
        "items": [
            {"outcome": _shown(item.outcome), "active": [_active(step) for step in item.active.values()]}
            for item in scope.items
        ],
    }


def _active(step: Any) -> dict[str, Any]:
    return {
        "key": step.key,
        "phase": step.phase.name,
        "ready_at": step.ready_at,
        "failed": [step.transport_failed, step.component_failed],
        "wake_at_ms": step.wake_at_ms,
        "sub_runs": [scope.number for scope in step.sub_runs or ()],
    }


def _step(view: Any) -> dict[str, Any]:
    names = ("run_id", "item", "step_id", "component", "depth", "status", "attempt", "retries", "started_at_ms")
    return {**{name: getattr(view, name) for name in names}, "outcome": _shown(view.outcome)}


def _shown(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Failure):
        return {"code": value.code.name, "message": value.message}
    if hasattr(value, "blob"):
        return {"blob": value.blob}
    return {"value": decode(value.raw)}


@dataclass
class Recording:
    """A run with a journal. `signals` are all that it receives; those of the world are the ones still to come."""

    world: World
    signals: list[tuple[int, str, Any]]

    @classmethod
    def begin(cls, tree: Any, inputs: list[Any], window: int = 4, signals: Any = ()) -> Recording:
        from support.engine import World

        found = [(item, name, payload) for item, name, payload in signals]
        return cls(World(tree, inputs=inputs, window=window, signals=list(found)), found)

    @classmethod
    def read(cls, data: dict[str, Any]) -> Recording:
        made = cls.begin(data["tree"], data["inputs"], data["window"], data["signals"])
        made.world.journal = [base64.b64decode(text) for text in data["journal"]]
        made.world.blobs = {blob: zlib.decompress(base64.b64decode(text)) for blob, text in data["blobs"].items()}
        return made

    def write(self) -> dict[str, Any]:
        world = self.world
        return {
            "tree": world.tree,
            "inputs": world.inputs,
            "window": world.window,
            "signals": self.signals,
            "journal": [base64.b64encode(raw).decode() for raw in world.journal],
            "blobs": {blob: base64.b64encode(zlib.compress(raw, 9)).decode() for blob, raw in world.blobs.items()},
            "cuts": [self.cut(upto) for upto in self._cut_points()],
        }

    def _cut_points(self) -> list[int]:
        """Return the lengths of the prefixes to record: a third, two thirds, and all of the journal."""
        length = len(self.world.journal)
        return sorted({max(1, length // 3), max(1, 2 * length // 3), length})

    def cut(self, upto: int) -> dict[str, Any]:
        """Return what a replay of a prefix gives, and how the run continues from there."""
        state = self.world.replayed(upto)
        ended = state.status is not None
        return {
            "upto": upto,
            "state": summary(state, self.world.journal[:upto]),
            "continued": None if ended else self._continued(upto),
        }

    def _continued(self, upto: int) -> dict[str, Any]:
        """Let the next owner of the run, which has only a prefix of the journal, drive it to its end."""
        other = self.begin(self.world.tree, self.world.inputs, self.world.window, self.signals).world
        other.journal, other.blobs = self.world.journal[:upto], dict(self.world.blobs)
        entries = [pb.Entry.FromString(raw) for raw in other.journal]
        other.now_ms = entries[-1].at_ms
        other.signals = other.signals[sum(entry.WhichOneof("kind") == "inbox_taken" for entry in entries) :]
        other.dispatched.clear()
        other.crash()
        outcomes = other.run()
        return {"outcomes": json.loads(json.dumps(outcomes)), "dispatched": [list(call) for call in other.dispatched]}


# --- writing ----------------------------------------------------------------------------------------------------------


def _recordings() -> dict[str, Recording]:
    """Return the runs to record, driven to their end."""
    try:
        corpus = importlib.import_module("support.corpus")
    except ModuleNotFoundError:
        corpus = importlib.import_module("unit.test_run_engine")
    found: dict[str, Recording] = {}

    def begin(name: str, *args: Any, **options: Any) -> World:
        found[name] = Recording.begin(*args, **options)
        return found[name].world

    for number, (name, tree) in enumerate(sorted(corpus.CORPUS.items())):
        begin(name, tree, [{"n": 1}], signals=corpus.SIGNALS.get(name, ())).run(_choices(SEED + number))

    chain, diamond = corpus.CORPUS["chain"], corpus.CORPUS["diamond"]
    begin("batch", diamond, [{"n": n} for n in range(6)], window=3).run(_choices(SEED))

    cancelled = begin("cancelled", diamond, [{"n": 1}, {"n": 2}])
    cancelled.step(0)
    cancelled.cancel()

    flaky = corpus.step("f", "/c/flaky", 5, onError={"action": "retry", "maxRetries": 4})
    begin("retries", {"steps": [flaky], "output": corpus.ref("f")}, [{}]).run([0, -1, 0, 0])

    handed_over = begin("handed over", chain, [{"n": 1}])
    handed_over.step(0)
    handed_over.crash(handed_over=True)
    handed_over.run()

    poison = begin("given up", chain, [{"n": 1}])
    poison.step(0)
    for number in range(ADOPTIONS):
        if number == 2:
            poison._feed(pb.Entry(at_ms=poison.now_ms, survived=pb.Survived()))
        if poison.state.status is None:
            poison.crash()
    poison.run()
    return found


def _choices(seed: int) -> list[int]:
    """Return choices in which owners die, but not so often in a row that the run is given up."""
    chance = random.Random(seed)
    while True:
        found = [chance.randint(-1, 7) for _ in range(CHOICES)]
        if found.count(-1) >= 2 and all(found[i : i + 5].count(-1) < 3 for i in range(CHOICES)):
            return found


def write(folder: Path) -> None:
    """Write a record of every run into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, recording in _recordings().items():
        text = json.dumps(recording.write(), indent=1, ensure_ascii=False)
        (folder / f"{name.replace(' ', '_')}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
