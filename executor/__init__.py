"""The executor: drives assigned runs, journals their facts, and calls component hosts."""
