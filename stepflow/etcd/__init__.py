"""Protobuf messages of etcd's API.

- `v1/`: generated from `proto/stepflow/etcd/v1`.
"""
