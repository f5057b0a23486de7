"""The type of a flow's input, from its uses: what each `$input` is used for, and which members are required.

A member is required unless all of its uses are optional. Optional uses: each option of `$coalesce` but the last, the
default of a variable, and the parts of an `$if`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from stepflow.flow import syntax
from stepflow.flow.diagnostics import Diagnostic
from stepflow.flow.types.fits import Verdict, fits
from stepflow.flow.types.make import ANY, NULL, bounded, is_any, union
from stepflow.flow.types.notation import type_text
from stepflow.json_problems import json_path

if TYPE_CHECKING:
    from stepflow.flow.paths import Path
    from stepflow.flow.source import DocumentPath
    from stepflow.flow.types.scope import TypeScope


@dataclass(slots=True)
class _Use:
    """A place in the input: its type so far, and what is below it."""

    type: Any = field(default_factory=dict)
    is_required: bool = False
    members: dict[str, _Use] = field(default_factory=dict)
    items: _Use | None = None


class InputUses:
    """The uses of one flow's input."""

    def __init__(self, scope: TypeScope) -> None:
        self.conflicts: list[Diagnostic] = []
        self._scope = scope
        self._root = _Use()
        self._is_used = False

    def read(self, expression: syntax.Expression, wanted: Any, at: DocumentPath, *, is_optional: bool = False) -> None:
        """Record the uses in an expression whose value must have the type `wanted`."""
        match expression:
            case syntax.InputRef(path):
                self._record(path, wanted, at, is_optional)
            case syntax.VariableRef(_, default):
                if default is not None:
                    self.read(default, wanted, at, is_optional=True)
            case syntax.If(condition, then, otherwise):
                self.read(condition, ANY, (*at, "condition"), is_optional=True)
                self.read(then, wanted, (*at, "then"), is_optional=True)
                self.read(otherwise, wanted, (*at, "else"), is_optional=True)
            case syntax.Coalesce(options):
                last = len(options) - 1
                nullable = ANY if is_any(wanted) else union([wanted, NULL])
                for index, option in enumerate(options):
                    below = (*at, index)
                    if index == last:
                        self.read(option, wanted, below, is_optional=is_optional)
                    else:
                        self.read(option, nullable, below, is_optional=True)
            case syntax.Array(items):
                for index, item in enumerate(items):
                    self.read(item, self._part(wanted, index), (*at, index), is_optional=is_optional)
            case syntax.Object(members):
                for key, value in members:
                    self.read(value, self._part(wanted, key), (*at, key), is_optional=is_optional)
            case syntax.Literal() | syntax.StepRef():
                pass
            case _:
                assert_never(expression)

    def type(self) -> Any:
        """Return the type of the input; *any* if nothing is known about it."""
        return bounded(self._built(self._root)) if self._is_used else ANY

    def _part(self, wanted: Any, part: str | int) -> Any:
        found = self._scope.project(wanted, (part,))
        return found.type if found.missing is None else ANY

    def _record(self, path: Path, wanted: Any, at: DocumentPath, is_optional: bool) -> None:
        self._is_used = True
        use = self._root
        for part in path.parts:
            if isinstance(part, str):
                use = use.members.setdefault(part, _Use())
            else:
                use.items = use.items or _Use()
                use = use.items
            use.is_required |= not is_optional

        met = self._meet(use.type, wanted)
        if met is None:
            name = f"Path {path} of the input" if path.parts else "The input"
            first, second = type_text(use.type, self._scope), type_text(wanted, self._scope)
            text = f"{name} is used as {first} and as {second}"
            self.conflicts.append(Diagnostic(2100, text, json_path(at), {"path": path.text}))
        else:
            use.type = met

    def _meet(self, left: Any, right: Any) -> Any:
        """Return the type of values that have both types; None if there are none."""
        if is_any(left) or is_any(right):
            return right if is_any(left) else left
        there, back = fits(self._scope, left, right).verdict, fits(self._scope, right, left).verdict
        if there is Verdict.YES:
            return left
        if back is Verdict.YES:
            return right
        if there is back is Verdict.NO:
            return None
        return {"allOf": [left, right]}

    def _built(self, use: _Use) -> Any:
        type_ = use.type
        if use.members:
            members = {name: self._built(below) for name, below in use.members.items()}
            required = [name for name, below in use.members.items() if below.is_required]
            made = {"type": "object", "properties": members, **({"required": required} if required else {})}
            type_ = made if is_any(type_) else {"allOf": [type_, made]}
        if use.items is not None:
            made = {"type": "array", "items": self._built(use.items)}
            type_ = made if is_any(type_) else {"allOf": [type_, made]}
        return type_
