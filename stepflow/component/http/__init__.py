"""The HTTP transport: the listener (`server`), a POST (`served_request`), the host's blob API, later methods."""
