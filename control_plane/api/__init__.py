"""The gRPC edge of the control plane: one module per service, and the server that holds all of them."""
