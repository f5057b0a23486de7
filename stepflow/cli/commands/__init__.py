"""One module per command or group of commands: options, help, and calls of the modules that do the work.

- `run`: `run` and `resume`.
- `submit`: `submit`.
- `runs`: `runs list`, `get`, `steps`, `watch`, `signal`, `cancel`, `delete`.
- `flows`: `flows`.
- `cluster`: `cluster` and `components` (a mesh).
- `restart`: `components restart`.
- `components`: `list-components` (this machine).
- `validate`: `validate`.
- `infer`: `infer`.
- `test`: `test`.
- `init`: `init`.
- `schema`: `schema`.
- `dev`: `dev`.

The modules import typer and their options at the top and everything else inside the commands, which keeps the help
fast.
"""
