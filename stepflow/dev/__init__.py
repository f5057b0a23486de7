"""TODO head of stepflow/dev."""
