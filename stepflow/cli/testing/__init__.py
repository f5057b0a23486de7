"""`stepflow test`: the test cases of flows.

`discovery` finds the files, `cases` runs their cases, `compare` compares results, `report` prints, `update` writes new
expectations into the files, `outcomes` has the records in between.
"""
