"""Bridge to MCP servers: each tool, prompt and the resources of a server become components.

| module | owns |
|---|---|
| `backend` | the host's side: calls in, results out |
| `supervisor` | one connection at a time: launch, loss, back-off, the next one |
| `connection` | one negotiated connection: its listing, its calls in flight, its change notifications |
| `sign_of_life` | the end of a server that answers nothing after a cancelled call |
| `listing` | what the server offers, as components |
| `answers` | answers, taken out of the streams before the SDK's models validate them |
| `odd_offers` | warnings about offers that differ from the specification, once each |
| `results` | how an MCP result or error becomes a step's output or failure |
| `link` | the interface of the two transports, and the types shared by the bridge |
| `stdio` | the stdio transport: one launch of a server's process |
| `http` | the streamable HTTP transport: one connection |
| `stdout` | what a server prints: messages, progress, other text |
| `envelopes` | JSON-RPC envelopes as servers write them, and as the SDK accepts them |
| `notices` | notifications, recognised before they are decoded |
| `events` | server-sent events, thinned and repaired for the SDK |
| `http_transport` | the HTTP transport below the SDK's client: errors as responses, traces of calls |

A result: `McpBackend._call_over` calls `results.outcome`, then settles the call with `succeed` or `fail`. The executor
journals the settled outcome as the step's (`executor.calls`, `stepflow.run.settle`).

The MCP SDK takes most of a second to import. `link`, `backend` and `supervisor` do without it; the supervisor imports
the rest in a thread when a plugin starts.
"""
