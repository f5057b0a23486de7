"""The HTTP transport of component servers: JSON-RPC over POST.

- `server`: the listener.
- `served_request`: one POST, from the message to the answer.
- `host_blobs`: the host's blob API.
- `runs_translator`: requests for sub-runs in the methods of 0.9 and later.
"""
