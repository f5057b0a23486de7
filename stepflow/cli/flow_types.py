"""The components of a config, and the types of a flow under it: for `validate`, `infer` and `run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.cli import console

if TYPE_CHECKING:
    from stepflow.check import Catalogue
    from stepflow.config import Config
    from stepflow.errors import StepflowError
    from stepflow.flow import Flow
    from stepflow.flow.types import FlowTypes


def known_catalogue(config: Config, *, servers: bool) -> tuple[Catalogue, list[StepflowError]]:
    """Return what is known of the components of a config, and why servers did not start.

    `servers`: start the configured servers for the lists of their components, and stop them. Without, their components
    are unknown.
    """
    from stepflow.embedded.known_components import catalogue_of

    # Without a file, the flow may be meant for a mesh.
    has_all_routes = config.source is not None
    if not servers:
        return catalogue_of(config, has_all_routes=has_all_routes), []

    from stepflow.cli.interruptible import run_or_exit
    from stepflow.embedded.mesh import ask_servers

    listings, failures = run_or_exit(ask_servers(config))
    return catalogue_of(config, listings, has_all_routes=has_all_routes), list(failures.values())


def types_of(flow: Flow, catalogue: Catalogue, *, is_strict: bool) -> FlowTypes:
    """Return the types of a flow."""
    from stepflow.flow.types import analyse_flow

    return analyse_flow(flow, catalogue.schemas, is_strict=is_strict)


def print_failures(failures: list[StepflowError]) -> None:
    """Print why servers did not start; the schemas of their components stay unknown."""
    for failure in failures:
        console.error(failure)
