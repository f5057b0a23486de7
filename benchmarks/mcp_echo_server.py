"""The MCP server of the benchmarks: `step` adds one. Over stdio, or over streamable HTTP on the port that is given."""

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
