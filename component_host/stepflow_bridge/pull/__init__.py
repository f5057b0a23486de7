"""StepFlow over gRPC pull: workers connect to an endpoint of the host and fetch their tasks.

- `backend`: the bridge, for workers started here and for remote workers.
- `config`: the configuration of a plugin, after substitution.
- `process`: one worker process, through all its restarts.
- `endpoint`: the gRPC service: streams of tasks, claims, completions, call-backs.
- `messages`: from calls to assignments, from completions to outcomes.
- `callbacks`: sub-runs and blobs, in the name of a task's call.
- `queue`: the assignment of calls to workers, and lost workers.
- `records`: offer, task, worker, outbox.
- `tasks`: tasks by id and by call token.
- `workers`: workers by group and id.
- `timeouts`: time limits of workers and tasks.
"""
