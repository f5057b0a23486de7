"""A server of the stepflow-py package with the package's own components, such as `udf`."""

from stepflow_py import StepflowStdioServer

server = StepflowStdioServer()

if __name__ == "__main__":
    server.run()
