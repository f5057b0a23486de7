"""Server processes of plugins: start, input and output, stop, and restart."""
