"""The gRPC edge of the control plane: a module per service, and the server of all services."""
