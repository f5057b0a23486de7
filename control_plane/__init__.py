"""The control plane: stores flows, admits and places runs, takes over the runs of dead executors, answers clients."""
