"""Component hosts as seen by an executor: streams, credits, routes, and the calls in flight or waiting.

- `link`: the streams to all registered hosts; feeds `pool`, as the embedded mesh does.
- `pool`: the calls in flight, and the choice of a host.
- `peer`: a single host: stream, offer, credits.
- `queue`: calls waiting for a host.
- `routes`: the mesh's rules with the components offered by hosts.
- `offers`: the components of a plugin over all its hosts.
- `caller`: a call at a host, and the `Caller` protocol, the only view of partitions here.
"""
