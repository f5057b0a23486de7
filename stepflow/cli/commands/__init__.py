"""TODO head of stepflow/cli/commands."""
