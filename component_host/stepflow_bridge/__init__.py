"""Bridges to StepFlow component servers: over stdio, over HTTP, and over gRPC pull.

`stdio` and `http` share the pool (`pool`), the JSON-RPC messages (`protocol`) and the call-backs (`callbacks`).
`pull` has messages of its own.
"""
