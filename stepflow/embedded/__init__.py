"""TODO head of stepflow/embedded."""
