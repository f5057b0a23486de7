"""StepFlow over HTTP: JSON-RPC by POST, call-backs as events of the answer."""
