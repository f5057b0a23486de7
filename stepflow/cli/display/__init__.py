"""Showing runs: progress, outcomes, listings.

- `outcome`: how a run ended, a single run or a batch, completed or failed, driven here (`run`, `resume`) or by a mesh
  (`submit`, `runs watch`): the results on stdout, failed items among them, a summary on stderr, the exit code.
- `results`: the results of an ended run, read in parts.
- `streamed`: the results of a batch, written while it runs.
- `view`: progress on stderr while a run goes on.
- `live`: the view for a terminal, a table of steps.
- `step_rows`: the rows of that table.
- `lines`: the view elsewhere, one line per event.
- `runs`: listings and details of runs and steps, for people (`stepflow runs`).
- `trees`: runs, results, steps and events as JSON, for programs (`--json`).
- `failures`: failures in one line, the failed items of a batch, and traces (`--error`).
- `flow_lines`: the line of a failed expression in the flow file.
- `texts`: durations, instants, failures and texts of components, for all of these modules.
- `follow`: following a run of a mesh to its end, including Ctrl-C.
"""
