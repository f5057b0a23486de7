"""TODO head of stepflow/cli/display."""
