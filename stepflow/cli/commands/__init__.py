"""One module per command or group of commands: its options, its help, and the calls that do the work.

`run` has `run` and `resume`, `components` has `list-components` (this machine), `cluster` has `cluster` and
`components` (a mesh). The modules import typer and their options at the top and everything else inside the commands,
which keeps the help fast.
"""
