"""The values of `stepflow run` and `stepflow submit`: inputs, variables, overrides."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepflow.cli.input.run_input import Inputs, read_inputs
from stepflow.cli.input.values import read_overrides, read_variables
from stepflow.flow import Redactor

if TYPE_CHECKING:
    from stepflow.cli.options import RunOptions
    from stepflow.flow import Flow


@dataclass(frozen=True, slots=True)
class Given:
    """The values of a run. `overrides` is None without overrides; `redactor` hides the secrets in all values."""

    inputs: Inputs
    overrides: Any
    variables: dict[str, Any]
    redactor: Redactor


def read_given(options: RunOptions, flow: Flow, *, stdin_taken: bool = False) -> Given:
    """Read inputs, overrides and variables (from options and the process environment). Raises: Usage, Invalid."""
    inputs = read_inputs(options.of_input, flow, stdin_taken=stdin_taken or "-" in options.values[1:])
    overrides = read_overrides(options.of_overrides)
    variables = read_variables(options.of_variables, flow, os.environ)
    return Given(inputs, overrides, variables, Redactor(flow, inputs, variables))
