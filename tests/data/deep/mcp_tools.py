"""`greet` as a tool of an MCP server: over streamable HTTP with a port, else over stdio."""

import sys

from lookups import look_up
from mcp.server.mcpserver import MCPServer

server = MCPServer("deep")


@server.tool()
def greet(name: str) -> str:
    """Look a name up."""
    return look_up(name)


if len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    server.run()
