"""The kinds of StepFlow servers in the matrix; to add one, add an entry to `KINDS`.

A kind is a plugin of `stepflow-config.yml` and the package that its server needs. Its script offers the components of
`tests/data/stepflow_servers/kit.py` under the same names. A `fact` gives the reason why its protocol lacks a feature:
the feature's cell then asserts the actual behaviour, or does not exist.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from component_host.backends import make_backend
from stepflow.config import config_from_tree
from support import ROOT, server_venv
from support.host_side import started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from component_host.backend import Backend

SCRIPTS = ROOT / "tests" / "data" / "stepflow_servers"


@dataclass(frozen=True)
class Kind:
    """One row of the matrix."""

    name: str
    requirement: str
    """The pip requirement for the server's venv; empty: the server runs on the interpreter of the tests."""
    plugin: Mapping[str, Any]
    """As in `stepflow-config.yml`, without `command`, which becomes the interpreter of the venv."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Cell → the reason why this protocol cannot support it."""

    def __str__(self) -> str:
        return self.name


def over_http(version: str, script: str, *args: str) -> Kind:
    """Build the kind of a stepflow-py version over HTTP."""
    return Kind(
        name=f"http-{version}",
        requirement=f"stepflow-py[http]=={version}",
        plugin={"type": "stepflow", "transport": "http", "args": [str(SCRIPTS / script), *args]},
    )


def pulling(version: str) -> Kind:
    """Build the kind of a stepflow-py version whose workers pull over gRPC."""
    return Kind(
        name=f"pull-{version}",
        requirement=f"stepflow-py=={version}",
        plugin={"type": "grpc", "queueName": "kit", "args": [str(SCRIPTS / "pull.py")]},
    )


def over_stdio(version: str, **facts: str) -> Kind:
    """Build the kind of a stepflow-py version over stdio.

    Up to 0.6 a call-back does not name its execute, so a process gets one execute at a time; that costs throughput
    but no feature.
    """
    return Kind(
        name=f"stdio-{version}",
        requirement=f"stepflow-py=={version}",
        plugin={"type": "stepflow", "transport": "stdio", "args": [str(SCRIPTS / "kit.py")]},
        facts=facts,
    )


def with_sdk(transport: str, *args: str) -> Kind:
    """Build the kind of a server with this project's SDK."""
    pulls = transport == "pull"
    return Kind(
        name=f"sdk-{transport}",
        requirement="",
        plugin={
            **({"type": "grpc", "queueName": "kit"} if pulls else {"type": "stepflow", "transport": transport}),
            "args": [str(SCRIPTS / "kit_sdk.py"), *args],
            "env": {"PYTHONPATH": str(ROOT)},
        },
        facts={"udf": "the SDK has no component that runs code from a blob"},
    )


KINDS = (
    with_sdk("stdio"),
    with_sdk("http", "--http"),
    with_sdk("pull"),
    over_stdio("0.2.1", udf="its servers offer `/udf` only when they are started by its own main"),
    over_stdio("0.2.4"),
    over_stdio("0.3.0"),
    over_stdio("0.5.0"),
    over_stdio("0.7.0"),
    over_http("0.2.4", "kit.py", "--http", "{port}"),
    over_http("0.5.0", "kit.py", "--http", "{port}"),
    over_http("0.7.0", "kit.py", "--http", "{port}"),
    over_http("0.9.2", "kit_b.py"),
    over_http("0.10.0", "kit_b.py"),
    over_http("0.11.2", "kit_b.py"),
    pulling("0.12.0"),
    pulling("0.13.0"),
)


def kind_called(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


def command_of(kind: Kind) -> str:
    """Return the interpreter for the kind's server; the first call builds its venv."""
    if not kind.requirement:
        return "python"
    name = kind.requirement.replace("[", "-").replace("]", "").replace("==", "-")
    return str(server_venv([kind.requirement], name) / "python")


def backend_of(kind: Kind, **plugin: Any) -> Backend:
    """Build a backend for a kind without starting it; `plugin` overrides keys of its configuration."""
    tree = {
        "plugins": {"kit": {"command": command_of(kind), **kind.plugin, **plugin}},
        "routes": {"/kit": [{"plugin": "kit"}]},
    }
    return make_backend("kit", config_from_tree(tree, source=kind.name, base_dir=ROOT), os.environ)


@asynccontextmanager
async def server(kind: Kind | str, **plugin: Any) -> AsyncIterator[Backend]:
    """Run a backend for a kind until the block ends."""
    made = kind_called(kind) if isinstance(kind, str) else kind
    async with started(backend_of(made, **plugin)) as backend:
        yield backend
