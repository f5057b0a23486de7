"""The command line.

- `__main__`: the command, its global options, errors as messages and exit codes.
- `commands/`: one module per command; `options`: the shared options.
- `input/`: reading flows, configs, inputs and values; `output`: writing results.
- `display/`: progress of a run, outcomes, listings; `console`, `tables`: printing to stdout and stderr.
- `driving`, `stored`: runs of this machine; `remote`: runs of a mesh; `sources`: either, for `stepflow runs`.
- `testing/`: `stepflow test`; `template/`: the files of `stepflow init`.
"""
