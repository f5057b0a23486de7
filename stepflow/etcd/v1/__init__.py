"""Generated from `proto/stepflow/etcd/v1` by `make proto`: the part of etcd's v3 API used by `stepflow.store.etcd`.

- `etcd_pb2`: messages for keys, transactions, leases, watches, status and login.
"""
