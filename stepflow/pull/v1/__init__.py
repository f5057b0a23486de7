"""Generated from `proto/stepflow/pull/v1` by `make proto`.

- `pull_pb2`: messages of workers, orchestrators and the blob service.
"""
