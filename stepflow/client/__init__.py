"""A client of the mesh: stores flows, begins runs and follows them; for asyncio programs and for blocking ones.

    async with Client("localhost:7840") as client:
        run_id = await client.submit("greet", {"name": "Ada"})
        async for event in client.watch(run_id):
            print(event.kind, event.step_id)
        (item,) = [item async for item in client.items(run_id)]
        print(item.result)

Modules:
- `client`: `Client`, for asyncio programs.
- `blocking`: `BlockingClient`, for programs without an event loop.
- `watch`: the events of a run, over reconnects.
- `connection`: channels to the control planes, and repeated calls.
- `requests`: Python values and flow files as messages.
- `conversion`: messages as the client's data.
- `model`: the client's data.

Errors of the mesh are raised as the families of `stepflow.errors`, with the documented reasons of the API. A failed
step or item is data, not an exception: see `Item.failure`.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported: what goes wrong becomes an error

from stepflow.client.blocking import BlockingClient
from stepflow.client.client import Client
from stepflow.client.model import (
    ClusterInfo,
    Component,
    Diagnostic,
    Event,
    ExecutorInfo,
    FlowInfo,
    FlowVersion,
    HostInfo,
    Item,
    PluginInfo,
    Run,
    Step,
    StoredFlow,
)
from stepflow.client.requests import Named
from stepflow.client.watch import Watch
from stepflow.rpc.tls import Tls

Cluster = ClusterInfo
"""The older name of the same class."""

__all__ = [
    "BlockingClient",
    "Client",
    "Cluster",
    "ClusterInfo",
    "Component",
    "Diagnostic",
    "Event",
    "ExecutorInfo",
    "FlowInfo",
    "FlowVersion",
    "HostInfo",
    "Item",
    "Named",
    "PluginInfo",
    "Run",
    "Step",
    "StoredFlow",
    "Tls",
    "Watch",
]
