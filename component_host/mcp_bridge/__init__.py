"""Bridge to MCP servers: each tool, prompt and the resources of a server become components.

| module | owns |
|---|---|
| `backend` | the host's side: calls in, results out |
| `supervisor` | one connection at a time: launch, loss, back-off, the next one |
| `connection` | one negotiated connection: its listing, its calls in flight, its change notifications |
| `listing` | what the server offers, as components |
| `results` | how an MCP result or error becomes a step's output or failure |
| `link` | the interface of the two transports: `stdio`, and `http` over `http_transport` |

The MCP SDK takes most of a second to import. `link`, `backend` and `supervisor` do without it; the supervisor imports
the rest in a thread when a plugin starts.
"""
