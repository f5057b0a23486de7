"""A server of the stepflow-py package as people have it: the package's own components, `udf` among them."""

from stepflow_py import StepflowStdioServer

server = StepflowStdioServer()

if __name__ == "__main__":
    server.run()
