"""gRPC as the mesh uses it: servers and channels with TLS, errors on the wire and back, frames, health, processes.

- `server`: servers. Beyond loopback they listen only with TLS or an explicit `insecure`.
- `channel`: channels to the API and between services.
- `call_memory`: the memory that a call holds for large values.
- `errors`: a `StepflowError` as a status and back, with its family and its reason. The text is never parsed.
- `findings`: findings about flows on the wire.
- `frames`: one direction of a stream of frames.
- `health`: liveness and readiness.
- `labels`: labels of runs in filters.
- `options`: limits and keep-alives, the same for both ends.
- `probe`: whether an address refuses connections.
- `process`: the process of a service: options, store, signals, the ready line.
- `receiving`: the memory for large requests while they are received.
- `requests`: requests decoded, or refused as malformed.
- `tls`: TLS files, and addresses.

Knows no service. Import the submodules late in code that must start fast: gRPC takes about 0.2 s.
"""

import os

# gRPC reads both when it is imported. Fork support costs time per call, and no process forks after the import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # failures become errors; the C core's own log is for gRPC's authors
