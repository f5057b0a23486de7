"""The client library of the mesh: store flows, submit runs, follow runs; for asyncio and for blocking programs.

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
- `result_stream`: the result of an item, in chunks.
- `connection`: channels to the control planes, and repeated calls.
- `busy`: submissions that wait for a mesh that is busy.
- `batch`: the inputs of a batch, in messages.
- `requests`: Python values and flow files as messages.
- `conversion`: messages as the client's data.
- `model`: the client's data.

Errors of the API are raised as the families of `stepflow.errors`, with the documented reasons. A failed step or item
is data, not an exception: see `RunItem.failure`.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC reads it at import; errors are raised, not printed

from stepflow.client.blocking import BlockingClient
from stepflow.client.client import Client
from stepflow.client.model import (
    ClientEvent,
    ClusterInfo,
    Component,
    ExecutorInfo,
    FlowDiagnostic,
    FlowInfo,
    FlowVersion,
    HostInfo,
    HostRestart,
    PluginInfo,
    Run,
    RunItem,
    RunStep,
    StoredFlow,
    StoreInfo,
)
from stepflow.client.requests import Named
from stepflow.client.watch import RunWatch
from stepflow.rpc.tls import Tls

# Older public names of the same classes.
Cluster = ClusterInfo
Diagnostic = FlowDiagnostic
Event = ClientEvent
Item = RunItem
Step = RunStep
Watch = RunWatch

__all__ = [
    "BlockingClient",
    "Client",
    "ClientEvent",
    "Cluster",
    "ClusterInfo",
    "Component",
    "Diagnostic",
    "Event",
    "ExecutorInfo",
    "FlowDiagnostic",
    "FlowInfo",
    "FlowVersion",
    "HostInfo",
    "HostRestart",
    "Item",
    "Named",
    "PluginInfo",
    "Run",
    "RunItem",
    "RunStep",
    "RunWatch",
    "Step",
    "StoreInfo",
    "StoredFlow",
    "Tls",
    "Watch",
]
