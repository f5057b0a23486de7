"""StepFlow over gRPC pull: workers connect to an endpoint of the host and fetch their tasks."""
