"""A client of the mesh: stores flows, begins runs, follows them, from any asyncio program or from a blocking one.

    async with Client("localhost:7840") as client:
        run_id = await client.submit("greet", {"name": "Ada"})
        async for event in client.watch(run_id):
            print(event.kind, event.step_id)
        (item,) = [item async for item in client.items(run_id)]
        print(item.result)

Errors of the mesh are raised as the families of `stepflow.errors`, with the reasons that the API documents. A failed
step or item is no error: see `Item.failure`.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported: what goes wrong becomes an error

from stepflow.client.blocking import BlockingClient
from stepflow.client.client import Client, Named, Watch
from stepflow.client.model import (
    Cluster,
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
from stepflow.rpc.tls import Tls

__all__ = [
    "BlockingClient",
    "Client",
    "Cluster",
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
