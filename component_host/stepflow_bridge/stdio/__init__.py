"""StepFlow over stdio: one JSON-RPC message per line on the pipes of a child process.

- `backend`: the bridge, a pool of stdio servers.
- `config`: the configuration of a server, after substitution.
- `server`: one server, through all its restarts.
- `handshake`: initialize, and the traits of the server's generation.
- `reader`: lines from stdout, decoded.
- `executes`: the executes in flight, and the execute behind each call-back.
- `questions`: requests about the server itself.
- `callbacks`: call-backs, each answered once.
"""
