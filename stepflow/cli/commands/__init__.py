"""One module per command or group of commands: options, help, and the calls of the workers.

`run` has `run` and `resume`, `components` has `list-components` (this machine), `cluster` has `cluster` and
`components` (a mesh). The modules import typer and their options at the top and everything else inside the commands,
which keeps the help fast.
"""
