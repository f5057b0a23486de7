"""Runs upstream's orchestrator with a configuration, runs flows on it, and prints the results.

Reads `{"config": …, "runs": [{"flow": …, "input": …}]}`; prints `{"components": […], "runs": [{"output", "code",
"message"}]}`. Needs stepflow-py and stepflow-orchestrator 0.13.
"""

import asyncio
import json
import sys

from google.protobuf import json_format
from stepflow_orchestrator import OrchestratorConfig, StepflowOrchestrator
from stepflow_py import StepflowClient
from stepflow_py.proto import components_pb2
from stepflow_py.proto.components_pb2_grpc import ComponentsServiceStub


async def main() -> None:
    asked = json.load(sys.stdin)
    # At SIGTERM it waits for its streams to end, which workers keep open; then it is killed, and they notice.
    config = OrchestratorConfig(config=asked["config"], log_level="warn", shutdown_timeout=0.5)
    async with (
        StepflowOrchestrator.start(config) as orchestrator,
        StepflowClient.connect(orchestrator.url) as client,
    ):
        channel = client._channel  # it offers no listing
        listed = await ComponentsServiceStub(channel).ListRegisteredComponents(
            components_pb2.ListRegisteredComponentsRequest(), timeout=30
        )
        results = [await run(client, **each) for each in asked["runs"]]
        print(json.dumps({"components": [info.component_id for info in listed.components], "runs": results}))


async def run(client, flow, input):
    stored = await client.store_flow(flow)
    (item,) = (await client.run(stored.flow_id, input)).results
    output = json_format.MessageToDict(item.output) if item.HasField("output") else None
    return {"output": output, "code": item.error_code, "message": item.error_message}


asyncio.run(main())
