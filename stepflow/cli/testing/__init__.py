"""TODO head of stepflow/cli/testing."""
