"""Reading the files and texts of `stepflow.cli.options`: flows, configs, inputs, variables, overrides.

- `files`: bounded reads, formats by extension, parsing.
- `documents`: the flow and the config.
- `run_input`: the input of a run, or the inputs of a batch.
- `input_help`: the message of a missing input.
- `values`: variables, overrides, payloads.
- `given`: all values of `run` and `submit`, with their redactor.

Errors in the command line are `Usage` (exit code 2); errors inside a file are `Invalid` (exit code 1). These modules
load the JSON and YAML readers: commands import them when they run, not for their help.
"""
