"""Nodes of compiled expressions that read what an item has: results of steps, the input, variables.

- `StepValue`, `StepPart`: `$step`, without and with a path.
- `InputValue`, `VariableValue`: `$input`, `$variable`.

The promises of `nodes` hold for them. A path decodes its source at most once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.codec import Json, encode
from stepflow.errors import Code, Failure
from stepflow.flow.nodes import NULL
from stepflow.flow.paths import MISSING, Path, project
from stepflow.flow.values import is_short, part_at

if TYPE_CHECKING:
    from stepflow.flow.nodes import Env, Inside, Node, Outcome
    from stepflow.flow.values import Value
    from stepflow.json_problems import Part


class StepValue:
    """The whole result of a step."""

    __slots__ = ("incomplete", "index", "refs")

    lazy = False
    reads_input = False
    inside: Inside = ()

    def __init__(self, index: int, step: str) -> None:
        self.index = index
        self.refs: tuple[int, ...] = (index,)
        self.incomplete = Failure(Code.ORCHESTRATOR_ERROR, f"Step {step} not completed")

    def json(self, env: Env) -> Outcome:
        result = env.results[self.index]
        if isinstance(result, Json):
            return result.raw
        return self.incomplete if result is None else result

    def value(self, env: Env) -> Value | Failure:
        result = env.results[self.index]
        if result.__class__ is Json:
            return result.raw
        return self.incomplete if result is None else result

    def needed(self, env: Env, found: dict[int, None]) -> None:
        if env.results[self.index] is None:
            found[self.index] = None


class StepPart(StepValue):
    """A part of a step's result. Every path of a null result is null."""

    __slots__ = ("inside", "missing", "parts")

    def __init__(self, index: int, step: str, path: Path) -> None:
        super().__init__(index, step)
        self.parts = path.parts
        self.inside: Inside = ((index, path.parts),)
        self.missing = Failure(Code.EXPRESSION_FAILURE, f"Path {path} not found")

    def json(self, env: Env) -> Outcome:
        result = env.results[self.index]
        if not isinstance(result, Json):
            return self.incomplete if result is None else result
        tree = result.tree
        if tree is None:
            return NULL

        tree = project(tree, self.parts)
        return self.missing if tree is MISSING else encode(tree)

    def value(self, env: Env) -> Value | Failure:
        result = env.results[self.index]
        if not isinstance(result, Json):
            return self.incomplete if result is None else result
        if is_short(result, (NULL,)):
            return NULL
        found: Any = part_at(result, self.parts)
        return self.missing if found is MISSING else found


class InputValue:
    """The item's input, whole or in part."""

    __slots__ = ("missing", "parts")

    refs: tuple[int, ...] = ()
    lazy = False
    reads_input = True
    inside: Inside = ()

    def __init__(self, path: Path) -> None:
        self.parts = path.parts
        self.missing = Failure(Code.EXPRESSION_FAILURE, f"Input path {path} not found")

    def json(self, env: Env) -> Outcome:
        if not self.parts:
            return env.input.raw
        tree = project(env.input.tree, self.parts)
        return self.missing if tree is MISSING else encode(tree)

    def value(self, env: Env) -> Value | Failure:
        if not self.parts:
            return env.input
        found: Any = part_at(env.input, self.parts)
        return self.missing if found is MISSING else found

    def needed(self, env: Env, found: dict[int, None]) -> None:
        pass


class VariableValue:
    """A variable, whole or in part: the supplied value, else the schema's default, else the reference's own default."""

    __slots__ = ("default", "inside", "lazy", "name", "parts", "reads_input", "refs", "schema_default", "undefined")

    def __init__(self, name: str, parts: tuple[Part, ...], schema_default: Json | None, default: Node | None) -> None:
        self.name = name
        self.parts = parts
        self.schema_default = schema_default
        self.default = default
        self.refs = default.refs if default else ()
        self.lazy = bool(self.refs)
        self.reads_input = default is not None and default.reads_input
        self.inside: Inside = default.inside if default else ()
        self.undefined = Failure(Code.EXPRESSION_FAILURE, f"Undefined variable: {name}")

    def json(self, env: Env) -> Outcome:
        raw = self._found(env)
        if raw is not None:
            return raw
        return self.default.json(env) if self.default else self.undefined

    def value(self, env: Env) -> Value | Failure:
        raw = self._found(env)
        if raw is not None:
            return raw
        return self.default.value(env) if self.default else self.undefined

    def needed(self, env: Env, found: dict[int, None]) -> None:
        if self.default and self.lazy and self._found(env) is None:
            self.default.needed(env, found)

    def _found(self, env: Env) -> bytes | None:
        value = env.variables.get(self.name, self.schema_default)
        if value is None or not self.parts:
            return value.raw if value else None
        tree = project(value.tree, self.parts)
        return None if tree is MISSING else encode(tree)
