"""The builtin components: the components that come with the mesh.

- `backend`: the backend of plugins of type `builtin`; `noop`, `create_messages`, `put_blob`, `get_blob`.
- `openai`: `/openai`, one chat completion.
- `files`: `/load_file`.
- `schemas`: descriptions and schemas for listings.
- `failure`: the exception for failing a call.

`eval`, `map`, `iterate`, `sleep` and `wait_for_signal` run in the engine: see `stepflow.run.builtins`.
"""
