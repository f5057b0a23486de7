"""TODO head of control_plane/api."""
