"""`stepflow test`: the test cases of flows.

- `discovery`: finds the files.
- `cases`: runs the cases of a file.
- `compare`: compares expected and actual results.
- `outcomes`: records of cases and files.
- `report`: prints the outcomes.
- `update`: writes new expectations into the files.
"""
