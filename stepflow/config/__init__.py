"""TODO head of stepflow/config."""
