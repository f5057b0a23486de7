"""TODO head of executor/hosts."""
