"""TODO head of stepflow/store/etcd."""
