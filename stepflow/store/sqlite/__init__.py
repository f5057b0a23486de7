"""TODO head of stepflow/store/sqlite."""
