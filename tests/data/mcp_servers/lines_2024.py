"""An MCP server of protocol version 2024-11-05 without an SDK: one JSON-RPC message per line.

The first argument selects its behaviour:
- `plain`: initialize, tools/list in pages of one, tools/call
- `strict`: like `plain`, but it exits when the first message is not `initialize`, as some SDKs do
- `chatty`: like `plain`, but it first prints a banner on stdout
- `damaged`: its results are invalid JSON, or nested too deeply
- `endless`: the pages of its tools/list never end
- `promptless`: it has no tools and no tools/list
"""

import json
import os
import sys

MODE = sys.argv[1]
DEEP = "[" * 400 + "]" * 400

TOOLS = [
    {"name": "add", "description": "Add.", "inputSchema": {"type": "object", "required": ["a", "b"]}},
    {"name": "picture", "inputSchema": {"type": "object"}},
    {"name": "fail", "inputSchema": {"type": "object"}},
    {"name": "lie", "inputSchema": {"type": "object"}, "outputSchema": {"type": "object", "required": ["truth"]}},
    {"name": "nan", "inputSchema": {"type": "object"}},
    {"name": "deep", "inputSchema": {"type": "object"}},
    {"name": "{odd}", "inputSchema": {"type": "object"}},
]


def send(message: dict) -> None:
    print(json.dumps(message), flush=True)


def result(request: dict, content: dict) -> None:
    send({"jsonrpc": "2.0", "id": request["id"], "result": content})


def error(request: dict, code: int, message: str) -> None:
    send({"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}})


def initialize(request: dict) -> None:
    result(
        request,
        {
            "protocolVersion": "2024-11-05",
            "capabilities": {} if MODE == "promptless" else {"tools": {}},
            "serverInfo": {"name": "lines", "version": "1"},
        },
    )


def list_tools(request: dict) -> None:
    page = int((request.get("params") or {}).get("cursor") or 0)
    if MODE == "endless":
        result(request, {"tools": [{**TOOLS[0], "name": f"tool{page}"}], "nextCursor": str(page + 1)})
        return
    following = {"nextCursor": str(page + 1)} if page + 1 < len(TOOLS) else {}
    result(request, {"tools": [TOOLS[page]], **following})


def call(request: dict) -> None:
    name, arguments = request["params"]["name"], request["params"].get("arguments", {})
    if name == "add":
        if not {"a", "b"} <= arguments.keys():
            error(request, -32602, "a and b are wanted")
            return
        result(request, {"content": [{"type": "text", "text": str(arguments["a"] + arguments["b"])}]})
    elif name == "picture":
        result(
            request,
            {"content": [{"type": "image", "data": "AAAA", "mimeType": "image/png"}, {"type": "text", "text": "it"}]},
        )
    elif name == "fail":
        error(request, arguments.get("code", -32050), "it does not want to")
    elif name == "lie":
        result(request, {"content": [], "structuredContent": {"lie": "the secret payload"}})
    elif name == "nan":
        print(f'{{"jsonrpc": "2.0", "id": {request["id"]}, "result": {{"content": [], "n": NaN}}}}', flush=True)
    elif name == "deep":
        print(f'{{"result": {{"content": [], "n": {DEEP}}}, "jsonrpc": "2.0", "id": {request["id"]}}}', flush=True)
    else:
        error(request, -32602, f"Unknown tool: {name}")


if MODE == "chatty":
    print("Welcome to the lines server!\n\nHave fun.", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    method = request["method"]
    if method == "initialize":
        initialize(request)
    elif method == "tools/list" and MODE != "promptless":
        list_tools(request)
    elif method == "tools/call":
        call(request)
    elif "id" in request:
        if MODE == "strict" and method == "server/discover":
            print("expected initialize", file=sys.stderr, flush=True)
            os._exit(3)
        error(request, -32601, f"no method {method}")
