"""TODO head of stepflow/rpc."""
