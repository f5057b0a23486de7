"""A durable AI-workflow engine: what the services and the command line share."""

__version__ = "0.1.0"
