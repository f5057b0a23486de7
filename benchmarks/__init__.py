"""Measurements. `make bench` runs them and prints figures of one run side by side; ratios are what counts."""
