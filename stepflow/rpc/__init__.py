"""gRPC as the mesh uses it: servers and channels with TLS, errors on the wire and back, frames, health, processes.

- A `StepflowError` crosses the wire with its family and its reason (`errors`). The text is never parsed.
- A server listens beyond loopback only with TLS, or when it is told that insecure is meant (`server`).
- Both ends agree on limits and keep-alives (`options`).

Knows no service. Import the submodules late in code that must start fast: gRPC takes about 0.2 s.
"""

import os

# gRPC reads both when it is imported. Fork support costs time per call, and no process forks after the import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # failures become errors; the C core's own log is for gRPC's authors
