"""A flow made ready to run: ids resolved to indices, expressions compiled.

Flows embedded in data are not validated, so compiling accepts flows that validation rejects: references to later or
unknown steps, and repeated ids, of which the last definition counts and the others never run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from stepflow.flow.expr import Expr, compile_expression
from stepflow.flow.secrets import marks_secrets
from stepflow.flow.variables import VariableSpecs

if TYPE_CHECKING:
    from stepflow.flow.model import Flow, OnError


class CompiledStep(msgspec.Struct, frozen=True):
    """A step with an `index`, in the flow's list and in `Env.results` alike."""

    id: str
    index: int
    component: str
    input: Expr
    on_error: OnError
    must_execute: bool
    timeout_ms: int | None
    idle_timeout_ms: int | None


class CompiledFlow(msgspec.Struct, frozen=True):
    """`must_execute` has the indices of the steps that run even without a reference.

    `marks_secrets`: the flow marks a part of its input or a variable with `is_secret`.
    """

    flow: Flow
    steps: tuple[CompiledStep, ...]
    output: Expr
    index_of: dict[str, int]
    variables: VariableSpecs
    must_execute: tuple[int, ...]
    marks_secrets: bool


def compile_flow(flow: Flow) -> CompiledFlow:
    """Compile a parsed flow. Takes milliseconds for hundreds of steps, so keep the result."""
    index_of = {step.id: index for index, step in enumerate(flow.steps)}
    variables = VariableSpecs.from_schema(flow.schema("variables"))

    steps = tuple(
        CompiledStep(
            id=step.id,
            index=index,
            component=step.component,
            input=compile_expression(step.input, index_of, variables),
            on_error=step.on_error,
            must_execute=step.must_execute,
            timeout_ms=step.timeout_ms,
            idle_timeout_ms=step.idle_timeout_ms,
        )
        for index, step in enumerate(flow.steps)
    )

    return CompiledFlow(
        flow=flow,
        steps=steps,
        output=compile_expression(flow.output, index_of, variables),
        index_of=index_of,
        variables=variables,
        must_execute=tuple(step.index for step in steps if step.must_execute and index_of[step.id] == step.index),
        marks_secrets=marks_secrets(flow),
    )
