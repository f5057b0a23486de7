"""The component host: bridges step calls to component servers, and supervises the servers."""
