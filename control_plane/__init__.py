"""The control plane: stores flows, admits and places runs, answers clients."""
