"""TODO head of stepflow/routing."""
