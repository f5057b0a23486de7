"""The MCP server of the benchmarks: `step` adds one. Serves stdio, or streamable HTTP on the port in argv[1]."""

import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("bench", log_level="ERROR")


@server.tool()
async def step(value: int) -> dict[str, int]:
    """Add one."""
    return {"value": value + 1}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run()
