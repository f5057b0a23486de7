"""The kinds of StepFlow servers that the matrix is run on; to add one, add an entry to `KINDS`.

A kind is a plugin of `stepflow-config.yml` and the package its server needs. Its script offers the components of
`tests/data/stepflow_servers/kit.py` under the same names. What a kind cannot do is told by a `fact` of its protocol:
that cell then asserts what happens instead, or is no cell at all.
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
    """What pip installs into the venv of the server; empty: the server runs on our own interpreter."""
    plugin: Mapping[str, Any]
    """As in `stepflow-config.yml`; `command` is added: the interpreter of the venv."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Cell → why this protocol cannot have it."""

    def __str__(self) -> str:
        return self.name


def over_http(version: str, script: str, *args: str) -> Kind:
    """Return the kind of a stepflow-py over HTTP."""
    return Kind(
        name=f"http-{version}",
        requirement=f"stepflow-py[http]=={version}",
        plugin={"type": "stepflow", "transport": "http", "args": [str(SCRIPTS / script), *args]},
    )


def pulling(version: str) -> Kind:
    """Return the kind of a stepflow-py whose workers pull over gRPC."""
    return Kind(
        name=f"pull-{version}",
        requirement=f"stepflow-py=={version}",
        plugin={"type": "grpc", "queueName": "kit", "args": [str(SCRIPTS / "pull.py")]},
    )


def over_stdio(version: str, **facts: str) -> Kind:
    """Return the kind of a stepflow-py over stdio. Up to 0.6 its call-backs do not say which execute makes them: there
    a process gets one execute at a time, which is a matter of time and not of what can be done.
    """
    return Kind(
        name=f"stdio-{version}",
        requirement=f"stepflow-py=={version}",
        plugin={"type": "stepflow", "transport": "stdio", "args": [str(SCRIPTS / "kit.py")]},
        facts=facts,
    )


def with_sdk(transport: str, *args: str) -> Kind:
    """Return the kind of a server with our SDK."""
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
    """Return the interpreter that runs the kind's server; its venv is made at the first call."""
    if not kind.requirement:
        return "python"
    name = kind.requirement.replace("[", "-").replace("]", "").replace("==", "-")
    return str(server_venv([kind.requirement], name) / "python")


def backend_of(kind: Kind, **plugin: Any) -> Backend:
    """Return a backend for a kind, not started; `plugin` replaces keys of its configuration."""
    tree = {
        "plugins": {"kit": {"command": command_of(kind), **kind.plugin, **plugin}},
        "routes": {"/kit": [{"plugin": "kit"}]},
    }
    return make_backend("kit", config_from_tree(tree, source=kind.name, base_dir=ROOT), os.environ)


@asynccontextmanager
async def server(kind: Kind | str, **plugin: Any) -> AsyncIterator[Backend]:
    """Start a backend for a kind, and close it at the end."""
    made = kind_called(kind) if isinstance(kind, str) else kind
    async with started(backend_of(made, **plugin)) as backend:
        yield backend
