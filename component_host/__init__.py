"""The component host: bridges step calls to component servers, and supervises the servers.

A call, from an executor to a backend and back:
- `service`: gRPC streams of frames to executors.
- `stream`: the host's end of one executor's stream.
- `host`: admission, refusal, deduplication; acknowledged and forgotten calls.
- `call_table`: calls by idempotency key, and the newest epoch of each partition.
- `disputes`: disputes about the owner of a partition, decided by the store.
- `dispatch`: from admission to the backend: plugin ready, input fetched, host registered.
- `call`: one attempt: its outcome and its call-backs.
- `timed_call`: the time of one execution, and its timeouts.
- `call_tasks`: tasks for single calls: blobs and large outputs.
- `results`: messages for executors, built from the outcomes of calls.
- `held_results`: completed results, held until acknowledged.
- `deadlines`: absolute and idle timeouts.
- `credits`: the number of calls allowed to each executor.

Backends:
- `backend`: the interface of a backend.
- `backends`: from configured plugins to backends.
- `plugins`: start, state and stop of each backend.
- `replacements`: new backends for plugins, while calls are under way.
- `plugin_changes`: restarts by hand, and the configuration read again.
- `secret_values`: values of the environment that no text may show.
- `builtin/`: the components that come with the mesh.
- `mcp_bridge/`: MCP servers, over stdio and HTTP.
- `stepflow_bridge/`: StepFlow component servers, over stdio, HTTP and gRPC pull.
- `mock`: components that answer from a table, for tests of flows.
- `supervision/`: server processes: start, pipes, stop, restarts.
- `json_lines`: JSON messages in the lines that servers print.
- `progress_gate`: progress reports, thinned.
- `logs`: the log of each plugin, and its followers.
- `logged_lines`: log lines with their origin: bounded, without secrets.
- `logged_call`: the log lines of one call.
- `log_stream`: log lines of followed runs, for control planes.
- `late_imports`: imports of large libraries after the start.
- `retry_after`: the pause that an HTTP service asks for.

The process and the store:
- `__main__`: `python -m component_host`.
- `plugin_claims`: the pool that owns the name of a plugin.
- `registration`: the host's session and its routing rules.
- `route_claims`: claims on route prefixes.
- `session_message`: the content of the session.
- `session_watch`: changes of the session by others.
"""
