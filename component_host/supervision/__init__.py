"""TODO head of component_host/supervision."""
