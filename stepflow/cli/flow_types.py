"""The types of a flow under a config: for `stepflow validate --type-check` and `stepflow infer`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.cli import console

if TYPE_CHECKING:
    from stepflow.config import Config
    from stepflow.errors import StepflowError
    from stepflow.flow import Flow
    from stepflow.flow.types import FlowTypes


def types_of(flow: Flow, config: Config, *, servers: bool, is_strict: bool) -> tuple[FlowTypes, list[StepflowError]]:
    """Return the types of a flow, and why servers did not start.

    `servers`: start the configured servers for the schemas of their components, and stop them. Without, those schemas
    are unknown.
    """
    from stepflow.embedded.known_components import schema_lookup
    from stepflow.flow.types import analyse_flow

    if not servers:
        return analyse_flow(flow, schema_lookup(config), is_strict=is_strict), []

    from stepflow.cli.interruptible import run_or_exit
    from stepflow.embedded.mesh import list_components

    listed, failures = run_or_exit(list_components(config))
    return analyse_flow(flow, schema_lookup(config, listed), is_strict=is_strict), list(failures.values())


def print_failures(failures: list[StepflowError]) -> None:
    """Print why servers did not start; the schemas of their components stay unknown."""
    for failure in failures:
        console.error(failure)
