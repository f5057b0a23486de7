"""The command line.

- `__main__`: the entry of the process.
- `app`: the command, its global options, errors as messages and exit codes.
- `commands/`: one module per command.
- `options`: the shared options.
- `strict`: commands that refuse options and arguments that are given but empty.
- `input/`: reading flows, configs, inputs and values.
- `flow_types`: the types of a flow under a config.
- `yaml_edits`: edits of a YAML text that keep the rest of it.
- `output`: writing results, to stdout or a file.
- `display/`: progress of a run, outcomes, listings.
- `console`: messages on stderr, results on stdout, exit codes.
- `tables`: listings on stdout.
- `driving`: one run of this machine, driven to its end.
- `interruptible`: work that signals stop in order.
- `run_list`: lists of the runs stored on this machine.
- `stored`: a run stored on this machine, read back.
- `remote`: the connection to a mesh.
- `sources`: `stepflow runs` over either: this machine or a mesh.
- `log_sources`: `stepflow runs logs` over either.
- `testing/`: `stepflow test`.
- `template/`: the files of `stepflow init`.
"""
