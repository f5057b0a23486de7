"""The environment of a server: what it gets of the host's, and how much it is asked to log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from component_host.supervision.spec import ProcessSpec, server_environment
from stepflow import telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def usual_level() -> Iterator[None]:
    yield
    telemetry.configure()


def environment(**members: Any) -> dict[str, str]:
    spec: dict[str, Any] = {"plugin": "p", "command": "x", "args": (), "env": {}, "inherit_env": False}
    return server_environment(ProcessSpec(**{**spec, "working_directory": "/", "environ": {}, **members}))


def test_the_level_of_the_environment_reaches_the_servers() -> None:
    assert environment(environ={"STEPFLOW_LOG_LEVEL": "error", "OTHER": "x"}) == {"STEPFLOW_LOG_LEVEL": "error"}


def test_a_process_that_logs_for_debugging_asks_its_servers_to_do_the_same() -> None:
    assert environment() == {}
    telemetry.configure("debug")
    assert environment() == {"STEPFLOW_LOG_LEVEL": "debug"}


def test_what_is_named_comes_first() -> None:
    telemetry.configure("debug")
    named = {"STEPFLOW_LOG_LEVEL": "warning"}
    assert environment(environ=named) == named
    assert environment(environ={"STEPFLOW_LOG_LEVEL": "error"}, env=named) == named
