"""One module per command or group of commands: options, help, and calls of the modules that do the work.

- `run`: `run` and `resume`.
- `submit`: `submit`.
- `runs`: `runs list`, `show`, `signal`, `cancel`, `delete`.
- `watch`: `runs watch`.
- `logs`: `runs logs`.
- `prune`: `runs prune`.
- `call`: `call`.
- `complete`: `completion`.
- `former`: former words.
- `flows`: `flows`.
- `cluster`: `cluster` and `components` (a mesh).
- `restart`: `components restart`.
- `components`: `components list --config` and the former `list-components` (this machine).
- `validate`: `validate`.
- `infer`: `infer`.
- `test`: `test`.
- `init`: `init`.
- `schema`: `schema`.
- `dev`: `dev`.

The modules import typer and their options at the top and everything else inside the commands, which keeps the help
fast.
"""
