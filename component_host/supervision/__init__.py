"""Server processes of plugins: how they are started, read, stopped, and started again."""
