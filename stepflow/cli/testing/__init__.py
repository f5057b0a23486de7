"""`stepflow test`: the cases that flows carry.

`discovery` finds the files, `cases` runs their cases, `compare` compares results, `report` prints, `update` writes new
expectations into the files, `outcomes` is what they hand to each other.
"""
