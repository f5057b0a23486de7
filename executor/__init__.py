"""The executor: drives the runs assigned to it, journals what happens, and calls component hosts."""
