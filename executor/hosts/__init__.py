"""Component hosts as seen by an executor: streams, credits, routes, and the calls in flight or waiting.

`link` (streams) and the embedded mesh feed `pool`; `pool` is made of `peer` (a single host), `routes` and `queue`.
Partitions are known here by the `Caller` protocol only.
"""
