"""A simulated world around the run engine, without I/O: components as functions, virtual time, crashes on demand.

`World.run(choices)` drives one partition to its end. `choices` decide which call answers next and when the owner
crashes, so that hypothesis can search orders and crash points, and shrink its findings. Every entry is serialised and
parsed, and a crash rebuilds the state from the entries alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepflow.codec import INLINE_BYTES_MAX, Json, blob_id, decode, encode
from stepflow.errors import Code, Failure
from stepflow.flow import compile_flow, flow_from_tree
from stepflow.flow.values import unloaded
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.routing.table import ENGINE_COMPONENTS, PluginComponents, RouteTable, Rule
from stepflow.run import (
    Append,
    CancelCall,
    Dispatch,
    Phase,
    RunState,
    ScopeEnded,
    WantBlob,
    apply,
    decide,
    find_step,
    new_run,
    settle,
    start_callback,
)
from stepflow.run.advance import advance
from stepflow.run.entries import failure_from_pb, json_of, payload_of
from stepflow.run.large_values import note_value_stored, take_unstored

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stepflow.log_lines import LogLine
    from stepflow.run import Scope

SIGNAL_FROM = 6

RUN_ID = "018f0000-0000-7000-8000-000000000001"

ROUTES = RouteTable(
    {"/c": (Rule("c"),), "/builtin": (Rule("builtin"),)},
    {"builtin": PluginComponents(tuple((name, name) for name in ENGINE_COMPONENTS), True, ENGINE_COMPONENTS)},
)
"""`/c/…` are components on hosts; all other paths are engine components."""


def _flaky(value: Any, attempt: int) -> Any:
    """Fail twice, then succeed."""
    return Failure(Code.COMPONENT_FAILED, "not yet") if attempt < 3 else value


COMPONENTS: dict[str, Any] = {
    "id": lambda value, attempt: value,
    "add": lambda value, attempt: {"sum": value["a"] + value["b"]},
    "null": lambda value, attempt: None,
    "big": lambda value, attempt: {"text": "x" * (INLINE_BYTES_MAX + 10), "n": value},
    "medium": lambda value, attempt: {"text": "y" * 2_000, "n": value},
    "fail": lambda value, attempt: Failure(Code.COMPONENT_FAILED, f"failed on {encode(value).decode()}"),
    "bad": lambda value, attempt: Failure(Code.INVALID_INPUT, "bad input"),
    "lost": lambda value, attempt: Failure(Code.UNREACHABLE, "the server died") if attempt < 2 else value,
    "gone": lambda value, attempt: Failure(Code.UNREACHABLE, "no server"),
    "slow": lambda value, attempt: Failure(Code.TIMEOUT, "too slow"),
    "flaky": _flaky,
    "busy": lambda value, attempt: Failure(Code.RESOURCE_UNAVAILABLE, "busy", encode({"retry_after_ms": value})),
}
"""Functions of input and attempt alone; a crash increments the attempt, as in production."""


@dataclass
class World:
    """One partition, its journal and the calls in flight. `dispatched` lists (key, attempt) in dispatch order."""

    tree: dict[str, Any]
    inputs: list[Any] = field(default_factory=lambda: [{}])
    variables: dict[str, Any] = field(default_factory=dict)
    window: int = 4
    transport_retries: int = 3
    blobs: dict[str, bytes] = field(default_factory=dict)
    signals: list[tuple[int, str, Any]] = field(default_factory=list)
    """Item, name and payload of signals, received in this order when a choice says so or the run waits."""
    components: dict[str, Any] = field(default_factory=lambda: dict(COMPONENTS))
    engine_version: int = 1
    locates_failures: bool = False
    log_tail: tuple[LogLine, ...] = ()
    """The last log lines of every failed attempt."""

    def __post_init__(self) -> None:
        self.now_ms = 1_000_000
        self.journal: list[bytes] = []
        self.dispatched: list[tuple[str, int]] = []
        self.answered: list[tuple[str, int]] = []
        self.crashes = 0
        self.signalled = 0
        self.slots_peak = 0
        self.flight: list[Dispatch] = []
        self.parents: dict[str, Scope] = {}
        self.policy = state_pb2.Policy(
            transport_retries_max=self.transport_retries,
            concurrency_max=self.window,
            engine_version=self.engine_version,
            locates_failures=self.locates_failures,
        )
        self.state = self._fresh()
        self._adopt()

    def run(self, choices: Iterable[int] = ()) -> list[Any]:
        """Drive the partition to its end and return the outcome of every item: a tree, or (code, message) of a failure.

        A choice n >= 0 answers the (n % calls)-th call; a negative choice crashes the owner, and another one takes
        over. From `SIGNAL_FROM` on, the next signal is delivered first.
        """
        taken = iter(choices)
        for _ in range(20_000):
            if self.state.status is not None:
                return self.outcomes()
            self.step(next(taken, 0))
        raise AssertionError("the run does not end")

    def step(self, choice: int) -> None:
        if choice < 0:
            self.crash()
        elif self.signals and (choice >= SIGNAL_FROM or self._waits_for_signals()):
            self.signal(*self.signals.pop(0))
        elif self.flight:
            self.answer(self.flight.pop(choice % len(self.flight)))
        else:
            wake = self.state.next_wake_ms()
            if wake is None and self.state.status is None:
                raise AssertionError("nothing is in flight, no timer is set, and the run has not ended")
            self.now_ms = max(self.now_ms, wake or 0)
        self.turn()

    def crash(self, *, keep: int = 0, handed_over: bool = False) -> None:
        """Crash the owner; the next owner gets only the journal. A host still holds `keep` of the calls in flight."""
        self.crashes += 1
        held = [(call.step.key, call.attempt) for call in self.flight][:keep]
        self.flight, self.parents = [], {}
        self.state = self.replayed()
        self._adopt(held, handed_over=handed_over)

    def replayed(self, upto: int | None = None) -> RunState:
        """Rebuild the state from the serialised journal, or from a prefix of it."""
        state = self._fresh()
        for raw in self.journal[:upto]:
            apply(state, pb.Entry.FromString(raw))
            brought: dict[str, bytes | None] = {}
            while not advance(state, brought) and state.wanted:
                brought.update({blob: self.blobs.get(blob) for blob in state.take_wanted()})
        return state

    def turn(self) -> None:
        brought: dict[str, bytes | None] = {}
        for _ in range(10_000):
            again = False
            for action in decide(self.state, self.now_ms, ROUTES, brought):
                again = self._act(action, brought) or again
            self.slots_peak = max(self.slots_peak, self.state.slots_used)
            for value in take_unstored(self.state):
                self._put(value.raw)
                note_value_stored(value)
            if not again:
                return
        raise AssertionError("decide never comes to rest")

    def answer(self, call: Dispatch) -> None:
        """Execute a call and apply its result."""
        step = call.step
        if step.item.active.get(step.index) is not step or step.phase is not Phase.IN_FLIGHT:
            return
        name = call.target.component.lstrip("/")
        value = decode(call.input)
        if name == "parent" and not self._sub_run_ended(call, value):
            return
        outcome = self.parent_result(call) if name == "parent" else self.components[name](value, call.attempt)
        self.answered.append((step.key, call.attempt))
        result = outcome if isinstance(outcome, Failure) else self._value(encode(outcome))
        entry = settle(
            self.state,
            step,
            result,
            origin=pb.ORIGIN_COMPONENT,
            attempt=call.attempt,
            started_at_ms=self.now_ms,
            duration_ms=1,
            host="h",
            now_ms=self.now_ms,
            log_tail=self.log_tail if isinstance(outcome, Failure) else (),
        )
        self._feed(entry)

    def _waits_for_signals(self) -> bool:
        return not self.flight and self.state.next_wake_ms() is None

    def signal(self, item: int, name: str, payload: Any) -> None:
        self.signalled += 1
        value = self._value(encode(payload))
        signal = pb.Signal(name=name, payload=payload_of(value))
        taken = pb.InboxTaken(id=f"s{self.signalled}", signal=signal)
        self._feed(pb.Entry(at_ms=self.now_ms, item=item, inbox_taken=taken))
        self.turn()

    def cancel(self) -> None:
        self._feed(pb.Entry(at_ms=self.now_ms, inbox_taken=pb.InboxTaken(id="m", cancel=True)))
        self.turn()

    def outcomes(self) -> list[Any]:
        return [self.shown(item.outcome) for item in self.state.root.items]

    def entries(self) -> Iterator[pb.Entry]:
        return (pb.Entry.FromString(raw) for raw in self.journal)

    def completed_keys(self) -> list[str]:
        """Return the keys of the steps with a journaled result, in journal order."""
        found = []
        for entry in self.entries():
            if entry.WhichOneof("kind") == "step_completed":
                scope = self.state.scopes[entry.scope]
                step = scope.plan.steps[entry.step]
                found.append(f"{scope.key}/{entry.item + scope.first_item}/{step.id}")
        return found

    def failures(self) -> dict[str, str]:
        """Return the failure codes of the run's own steps, by step id (item 0)."""
        return {
            self.state.root.plan.steps[entry.step].id: failure_from_pb(entry.step_completed.failure).code.name
            for entry in self.entries()
            if entry.step_completed.HasField("failure") and entry.scope == 0 and entry.item == 0
        }

    def shown(self, outcome: Json | Failure | None) -> Any:
        if isinstance(outcome, Failure):
            return (outcome.code.name, outcome.message)
        assert outcome is not None
        return decode(self.text(outcome))

    def text(self, value: Json) -> bytes:
        """Return the text of a value of the run, joined from all its parts."""
        sources = unloaded(value)
        for source in sources:
            source.load(self.blobs[source.blob])
        text = value.raw
        for source in sources:
            source.unload()
        return text

    def _fresh(self) -> RunState:
        return new_run(
            RUN_ID,
            partition=0,
            first_item=0,
            plan=compile_flow(flow_from_tree(self.tree)),
            inputs=[Json(encode(value)) for value in self.inputs],
            variables={name: Json(encode(value)) for name, value in self.variables.items()},
            policy=self.policy,
            batch=len(self.inputs) > 1,
        )

    def _adopt(self, held: Iterable[tuple[str, int]] = (), *, handed_over: bool = False) -> None:
        adopted = pb.Adopted(epoch=self.crashes + 1, executor_id=f"e{self.crashes}", handed_over=handed_over)
        self._feed(pb.Entry(at_ms=self.now_ms, adopted=adopted))
        for key, attempt in held:
            step = find_step(self.state, key)
            assert step is not None
            step.rejoin_attempt(attempt)
        self.turn()

    def _feed(self, entry: pb.Entry) -> None:
        raw = entry.SerializeToString()
        self.journal.append(raw)
        apply(self.state, pb.Entry.FromString(raw))

    def _act(self, action: Any, brought: dict[str, bytes | None]) -> bool:
        if isinstance(action, Append):
            payload = action.entry.step_completed.result
            if len(payload.json) > INLINE_BYTES_MAX:
                payload.blob = self._put(payload.json)
            self._feed(action.entry)
            return True
        if isinstance(action, WantBlob):
            brought[action.blob] = self.blobs.get(action.blob)
            return True
        if isinstance(action, Dispatch):
            self.dispatched.append((action.step.key, action.attempt))
            self.flight.append(action)
            if action.target.component.lstrip("/") == "parent":
                return self._start_sub_run(action)
        elif isinstance(action, CancelCall):
            self.flight = [call for call in self.flight if call.step is not action.step]
        else:
            assert isinstance(action, ScopeEnded)
        return False

    def _value(self, raw: bytes) -> Json:
        if len(raw) <= INLINE_BYTES_MAX:
            return Json(raw)
        return json_of(pb.Payload(blob=self._put(raw)))

    def _put(self, raw: bytes) -> str:
        self.blobs[blob_id(raw)] = raw
        return blob_id(raw)

    def _start_sub_run(self, call: Dispatch) -> bool:
        """Act as `/c/parent`, a component with a call-back: run the flow in its input on the inputs in its input."""
        value = decode(call.input)
        request = host_pb2.StartRun(
            flow=pb.Payload(json=encode(value["flow"])), inputs=pb.Payload(json=encode(value["inputs"])), key="#0"
        )
        started = start_callback(self.state, call.step, request, self.now_ms)
        if isinstance(started, pb.Entry):
            self._feed(started)
            return True
        return False

    def _sub_run_ended(self, call: Dispatch, value: Any) -> bool:
        scopes = call.step.sub_runs or []
        if scopes and scopes[0].ended:
            return True
        self.flight.insert(0, call)  # still waits for its sub-run: answered after all other calls
        if len(self.flight) > 1:
            self.answer(self.flight.pop())
        return False

    def parent_result(self, call: Dispatch) -> Any:
        assert call.step.sub_runs
        return [self.shown(item.outcome) for item in call.step.sub_runs[0].items]
