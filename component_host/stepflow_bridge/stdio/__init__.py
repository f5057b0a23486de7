"""StepFlow over stdio: one JSON-RPC message a line on the pipes of a child process."""
