"""TODO head of component_host/stepflow_bridge/pull."""
