"""The gRPC pull transport: a worker that fetches calls from a mesh, or from upstream's orchestrator.

- `options`: options from arguments and environment.
- `worker`: follows the stream of assignments.
- `tasks`: from a task to a call of the component server, and back.
- `remote`: the RPCs to orchestrators and the blob service.
- `messages`: conversions between JSON and messages.
"""

import os

# Before any submodule imports grpc, which reads both at its import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # fork support slows every call
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the worker logs failures itself
