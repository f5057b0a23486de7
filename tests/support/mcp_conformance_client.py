"""The client under the MCP conformance suite: this project's bridge, started for one URL. `python -m … URL`.

The suite names the scenario in the environment; this program makes the calls that a host would make in it.
"""

from __future__ import annotations

import asyncio
import os
import sys

from component_host.mcp_bridge.link import McpServerConfig
from stepflow.errors import Failure
from support.mcp import outcome_of, started

CALLS = {
    "tools_call": ("add_numbers", {"a": 5, "b": 3}),
    "elicitation-sep1034-client-defaults": ("test_client_elicitation_defaults", {}),
    "sse-retry": ("test_reconnection", {}),
}


async def main() -> None:
    async with started(McpServerConfig(url=sys.argv[1])) as backend:
        print("listed", [each.component for each in backend.listing().components])
        if call := CALLS.get(os.environ.get("MCP_CONFORMANCE_SCENARIO", "")):
            outcome = await outcome_of(backend, *call)
            print("outcome", outcome)
            sys.exit(isinstance(outcome, Failure))


if __name__ == "__main__":
    asyncio.run(main())
