"""The command line.

- `__main__`: the command, its global options, errors as messages and exit codes.
- `commands/`: one module per command; `options`: the options that several commands share.
- `input/`: reading what the options name; `output`: writing results.
- `display/`: progress of a run, how it ended, listings; `console`, `tables`: printing to stdout and stderr.
- `driving`, `stored`: runs of this machine; `remote`: runs of a mesh; `sources`: either, for `stepflow runs`.
- `testing/`: `stepflow test`; `template/`: the files of `stepflow init`.
"""
