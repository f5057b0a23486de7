"""Server processes of plugins: start, input and output, stop, and restart.

- `spec`: command, environment, limits and secrets of a server.
- `process`: one server process, from start to stop.
- `pipes`: writes to stdin, last lines of stderr.
- `group`: the process group, signalled as a whole.
- `restarts`: restarts of an ended server, and their pauses.
- `start_retries`: retries of failed plugin starts.
- `report`: texts about a process, for failures and errors.
"""
