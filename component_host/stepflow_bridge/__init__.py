"""Bridges to StepFlow component servers: over stdio, over HTTP, and over gRPC pull.

The transports:
- `stdio/`: JSON-RPC over the pipes of a child process.
- `http/`: JSON-RPC over POST.
- `pull/`: workers that fetch their tasks over gRPC.

Shared by `stdio` and `http`:
- `pool`: a pool of equal servers, and their restarts.
- `retirement`: servers full of abandoned calls are replaced.
- `protocol`: the JSON-RPC messages.
- `loose_lines`: messages that differ from the protocol.
- `listing`: the components in a server's list.
- `callbacks`: answers to requests of a server while its component executes.
- `run_requests`: sub-runs and metadata among these requests.
- `json_values`: JSON values of call-backs.

Shared by all three:
- `failures`: from a server's reply to the outcome of a call.
- `log_notices`: log lines that servers send with their calls.
"""
