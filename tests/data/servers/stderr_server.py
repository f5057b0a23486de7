"""A component server without the SDK: it writes to stderr, and announces nothing."""

import json
import sys

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue
    params, result = message.get("params", {}), None
    if message["method"] == "initialize":
        result = {"server_protocol_version": 1}
        print("started", file=sys.stderr, flush=True)
    elif message["method"] == "components/list":
        result = {"components": [{"name": "/speak", "component": "/speak"}]}
    elif params.get("component") == "/speak":
        print("working on", params["input"], file=sys.stderr, flush=True)
        result = {"output": "done"}
    if result is not None:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
