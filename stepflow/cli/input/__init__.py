"""Reading the files and texts of `stepflow.cli.options`: flows, configs, inputs, variables, overrides.

- `files`: bounded reads, formats by extension, parsing.
- `documents`: flow files and the config.
- `run_input`: the input of a run, or the inputs of a batch.
- `input_help`: the message of a missing input.
- `values`: VALUE; variables, overrides, payloads.
- `step_changes`: `--set`, as overrides.
- `given`: all values of `run` and `submit`, with their redactor.

Errors in the command line are `Usage`, errors inside a flow or config `CheckFailed`, errors inside a value `Invalid`.
These modules load the JSON and YAML readers: commands import them when they run, not for their help.
"""
