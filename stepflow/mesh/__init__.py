"""Protobuf messages and gRPC services of the mesh.

- `v1/`: generated from `proto/stepflow/mesh/v1`.
"""
