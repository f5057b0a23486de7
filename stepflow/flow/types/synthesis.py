"""The type of an expression, and the findings about the paths of its references.

- `$if` is the union of its branches; a condition that is a reference makes the same reference in `then` non-null.
- `$coalesce` is the union of its options; null remains only if each option can be null.
- A path of a step's null output is null, as in a run. A missing path in a condition only makes the condition false, so
  that it is a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from stepflow.flow import syntax
from stepflow.flow.diagnostics import Diagnostic
from stepflow.flow.types.make import ANY, NULL, bounded, is_any, list_of, literal_type, object_of, union
from stepflow.json_problems import json_path, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepflow.flow.paths import Path
    from stepflow.flow.source import DocumentPath
    from stepflow.flow.types.scope import Projection, TypeScope
    from stepflow.flow.variables import VariableSpecs
    from stepflow.json_problems import Part

    _Reference = syntax.StepRef | syntax.InputRef | syntax.VariableRef


@dataclass(slots=True)
class ExpressionTyper:
    """Types of the references of one flow. `findings` grows with each exact type."""

    scope: TypeScope
    variables: VariableSpecs
    definitions: Mapping[str, Any]
    input: Any = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict)
    findings: list[Diagnostic] = field(default_factory=list)
    is_strict: bool = False
    """Report each path that cannot be checked."""
    _non_null: list[syntax.Expression] = field(default_factory=list)
    _in_condition: int = 0

    def exact(self, expression: syntax.Expression, doc_path: DocumentPath) -> Any:
        """Return the type with the values of constants, and add to the findings. For checks."""
        return bounded(self._type(expression, doc_path))

    def widened(self, expression: syntax.Expression) -> Any:
        """Return the type without the values of constants. For the types of steps and of the output."""
        return bounded(self._type(expression, None))

    def _type(self, expression: syntax.Expression, at: DocumentPath | None) -> Any:
        """Return the type of an expression; `at` is None for a widened type, without findings."""
        match expression:
            case syntax.Literal(value):
                return literal_type(value, exact=at is not None)
            case syntax.StepRef() | syntax.InputRef() | syntax.VariableRef():
                type_ = self._reference(expression, at)
                return self.without_null(type_) if expression in self._non_null else type_
            case syntax.If():
                return self._if(expression, at)
            case syntax.Coalesce(options):
                return self._coalesce([self._type(option, _below(at, i)) for i, option in enumerate(options)])
            case syntax.Array(items):
                types = [self._type(item, _below(at, i)) for i, item in enumerate(items)]
                return list_of(types, exact=at is not None)
            case syntax.Object(members):
                return object_of({key: self._type(value, _below(at, key)) for key, value in members})
            case _:
                assert_never(expression)

    def _if(self, expression: syntax.If, at: DocumentPath | None) -> Any:
        self._in_condition += 1
        self._type(expression.condition, _below(at, "condition"))
        self._in_condition -= 1

        self._non_null.append(expression.condition)
        then = self._type(expression.then, _below(at, "then"))
        self._non_null.pop()
        return union([then, self._type(expression.otherwise, _below(at, "else"))])

    def _coalesce(self, types: list[Any]) -> Any:
        if not types:
            return NULL
        if all(self._can_be_null(type_) for type_ in types):
            return union(types)
        return union([self.without_null(type_) for type_ in types])

    def _can_be_null(self, type_: Any) -> bool:
        return any(is_any(option) or option["type"] == "null" for option in self.scope.alternatives(type_))

    def without_null(self, type_: Any) -> Any:
        """Return the type without its alternative null."""
        options = self.scope.alternatives(type_)
        kept = [option for option in options if is_any(option) or option["type"] != "null"]
        return type_ if len(kept) == len(options) else union(kept)

    def _reference(self, ref: syntax.StepRef | syntax.InputRef | syntax.VariableRef, at: DocumentPath | None) -> Any:
        match ref:
            case syntax.StepRef(step, path):
                found = self.scope.project(self.steps.get(step, ANY), path.parts, null_stays=True)
                return self._checked(found, ref, path.parts, f"the output of step '{shown(step)}'", at)
            case syntax.InputRef(path):
                found = self.scope.project(self.input, path.parts)
                return self._checked(found, ref, path.parts, "the input", at)
            case syntax.VariableRef():
                return self._variable(ref, at)
            case _:
                assert_never(ref)

    def _variable(self, ref: syntax.VariableRef, at: DocumentPath | None) -> Any:
        default = None if ref.default is None else self._type(ref.default, at)
        name, *rest = ref.path.parts or ("",)
        spec = self.variables.get(str(name))
        if spec is None or spec.schema is None:
            return ANY

        found = self.scope.project(self.scope.adopt(spec.schema, self.definitions), rest)
        if found.missing is not None and default is not None:
            return default
        type_ = self._checked(found, ref, rest, f"variable '{shown(str(name))}'", at)
        # A whole variable with a default in its schema never takes the default of the reference.
        return type_ if default is None or (spec.default and not rest) else union([type_, default])

    def _checked(
        self,
        found: Projection,
        ref: _Reference,
        parts: tuple[Part, ...] | list[Part],
        owner: str,
        at: DocumentPath | None,
    ) -> Any:
        """Return the type at a path, after a finding about a path that does not exist or cannot be checked."""
        if at is None:
            return found.type
        if found.missing is not None:
            if found.is_certain or not self._is_asked(ref):
                self.findings.append(self._missing(found, ref.path, parts, owner, at))
        elif self.is_strict and parts and is_any(found.type) and not self._in_condition:
            text = f"Path {ref.path} of {owner} cannot be checked: its type is unknown"
            self.findings.append(Diagnostic(1101, text, json_path(at), {"path": ref.path.text}))
        return found.type

    def _is_asked(self, ref: _Reference) -> bool:
        """Return True if a condition asks whether an open object has the member: this one, or one around."""
        return self._in_condition > 0 or any(_covers(condition, ref) for condition in self._non_null)

    def _missing(
        self,
        found: Projection,
        path: Path,
        parts: tuple[Part, ...] | list[Part],
        owner: str,
        at: DocumentPath,
    ) -> Diagnostic:
        assert found.missing is not None
        part = parts[found.missing]
        if isinstance(part, str):
            names = found.known[:20]
            hint = syntax.suggestion(part, names) or ("; known: " + ", ".join(f"`{shown(n)}`" for n in names[:10]))
            if part.isdecimal() and not names:
                hint = f"; an item of a list is `[{shown(part)}]`"
            problem = f"there is no member `{shown(part)}`{hint if names or part.isdecimal() else ''}"
        else:
            problem = f"there is no item {part}"

        is_certain = found.is_certain and not self._in_condition
        text = f"Path {path} of {owner} {'does not exist' if is_certain else 'may not exist'}: {problem}"
        data = {"path": path.text, "property": part}
        return Diagnostic(2101, text, json_path(at), data, severity=None if is_certain else "warning")


def _covers(condition: syntax.Expression, ref: _Reference) -> bool:
    """Return True if a condition is the reference, or a reference to a value around it."""
    match condition, ref:
        case (syntax.StepRef(asked, path), syntax.StepRef(step)) if asked == step:
            pass
        case (syntax.InputRef(path), syntax.InputRef()) | (syntax.VariableRef(path), syntax.VariableRef()):
            pass
        case _:
            return False
    return bool(path.parts) and path.parts == ref.path.parts[: len(path.parts)]


def _below(at: DocumentPath | None, part: Part) -> DocumentPath | None:
    return None if at is None else (*at, part)
