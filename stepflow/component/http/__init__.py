"""The HTTP transport: the listener (`server`), the host's blob API (`host_blobs`), later hosts' methods."""
