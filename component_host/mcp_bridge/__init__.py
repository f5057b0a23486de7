"""TODO head of component_host/mcp_bridge."""
