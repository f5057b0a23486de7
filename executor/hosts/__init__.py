"""Component hosts as an executor sees them: streams, credits, routes, and the calls in flight or waiting.

`link` (streams) and the embedded mesh feed `pool`; `pool` is made of `peer` (one host), `routes` and `queue`. Nothing
here knows a partition beyond the `Caller` protocol.
"""
