"""StepFlow over HTTP: JSON-RPC by POST, call-backs as events of the answer.

- `backend`: the bridge, a pool of HTTP servers.
- `config`: the configuration of a server, after substitution.
- `server`: one server, through all its restarts.
- `process`: a server process that listens on a port.
- `connection`: the connection, through all restarts of the server.
- `handshake`: health, initialize, list of components.
- `endpoint`: the client: requests, answers, health.
- `exchange`: one execute: its POST, its answer, its outcome.
- `executes`: the executes in flight, and their slots.
- `callbacks`: call-backs, each in the name of its execute.
- `blob_api`: the HTTP API of blobs for stepflow-py 0.10 and 0.11.
- `blob_refs`: references to blobs in outputs.
"""
