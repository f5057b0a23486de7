"""TODO head of component_host/builtin."""
