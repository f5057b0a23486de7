"""Write access to the state of a run, checked in the source: `stepflow/run` alone, and each part only in its module.

A write is an assignment to an attribute or into it, a deletion, or a call of a mutating container method. Attributes
are slots, recognised by name. A name used by other classes, too, counts only on a variable named like a state object.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest
from support import ROOT

from stepflow.run.scope import Item, JournaledStep, Scope, StepRun
from stepflow.run.state import JournaledRun, RunState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

ROOM = ROOT / "stepflow/run"
PRODUCT = ("stepflow", "control_plane", "executor", "component_host")

VARIABLES: dict[str, type] = {
    "state": RunState, "step": StepRun, "item": Item, "scope": Scope, "root": Scope,
}  # fmt: skip
"""Names that variables and attributes with objects of the state have."""

COMMON = {
    "active", "attempt", "call_id", "cancelled", "completed_at_ms", "concurrency_max", "created_at_ms", "dirty",
    "ended_at_ms", "env", "epoch", "index", "inputs", "item", "items", "key", "kind", "missing", "number", "open",
    "outcome", "parent", "partition", "run_id", "started_at_ms", "status", "stored", "wanted",
}  # fmt: skip
"""Slots whose names other classes use as well."""

CHANGING = frozenset(
    [
        "add",
        "append",
        "appendleft",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "popleft",
        "remove",
        "setdefault",
        "update",
    ]
)


def slots(*classes: type) -> set[str]:
    return {slot for each in classes for base in each.__mro__ for slot in getattr(base, "__slots__", ())}


STATE = slots(RunState, StepRun, Item, Scope)


def writes(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, name of the object and name of the slot of every write to the state."""
    for node in ast.walk(ast.parse(source)):
        for target in targets(node):
            if (found := slot_of(target)) is not None:
                yield node.lineno, *found  # type: ignore[attr-defined]  # nodes with targets have a line


def targets(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.Assign() | ast.Delete():
            found = list(node.targets)
        case ast.AugAssign() | ast.AnnAssign() | ast.For():
            found = [node.target]
        case ast.Call(func=ast.Attribute(value=container, attr=method)) if method in CHANGING:
            found = [container]
        case ast.Call(func=ast.Name(id="heappush" | "heappop" | "setattr"), args=[container, *_]):
            found = [container]
        case _:
            return []
    return [part for each in found for part in (each.elts if isinstance(each, ast.Tuple) else [each])]


def slot_of(target: ast.expr) -> tuple[str, str] | None:
    while isinstance(target, ast.Subscript | ast.Starred):
        target = target.value
    if not isinstance(target, ast.Attribute) or target.attr not in STATE:
        return None
    owner = target.value
    name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
    if name == "self" or (target.attr in COMMON and target.attr not in slots(VARIABLES.get(name, object))):
        return None
    return name, target.attr


def offences(paths: list[Path], allowed: AbstractSet[str] = frozenset()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} writes {name}.{slot}"
        for path in paths
        for line, name, slot in writes(path.read_text("utf-8"))
        if slot not in allowed
    ]


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if "_pb2" not in path.name]


def test_code_outside_the_heart_changes_the_state_of_a_run_through_its_methods() -> None:
    outside = [path for path in sources(*PRODUCT) if not path.is_relative_to(ROOM)]
    assert len(outside) > 100
    assert offences(outside) == []


def test_only_apply_changes_the_journaled_part() -> None:
    others = STATE - slots(JournaledRun, JournaledStep)
    rest = [path for path in sources("stepflow/run") if path.name != "apply.py"]
    assert offences(rest, others) == []


def test_only_enter_changes_a_phase() -> None:
    assert offences(sources("stepflow/run"), STATE - {"phase"}) == []
    definition = ast.parse((ROOM / "scope.py").read_text("utf-8"))
    setters = [
        function.name
        for function in ast.walk(definition)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        for target in targets(node)
        if isinstance(target, ast.Attribute) and target.attr == "phase"
    ]
    assert setters == ["__init__", "enter"]


def test_only_the_methods_of_the_state_count_the_slots_of_the_window() -> None:
    rest = [path for path in sources("stepflow/run") if path.name != "state.py"]
    assert offences(rest, STATE - {"slots_used", "callbacks_live"}) == []


def test_the_names_shared_with_other_classes_are_slots() -> None:
    assert set() == COMMON - STATE


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("state.ending = True", True),
        ("drive.state.ending = True", True),
        ("other.ending = True", True),
        ("self.state.bytes_journaled += 3", True),
        ("flight.step.call_id: int = 3", True),
        ("state.wanted, x = {}, 1", True),
        ("del item.active[3]", True),
        ("state.fresh.append(step)", True),
        ("heappush(state.timers, entry)", True),
        ("state.signals[key][0].foo()", False),
        ("view.status = 'failed'", False),
        ("result.call_id = 3", False),
        ("x = state.ending", False),
        ("state.note_journaled(3)", False),
    ],
)
def test_writes_of_every_form_are_seen(source: str, found: bool) -> None:
    assert bool(list(writes(source))) is found
