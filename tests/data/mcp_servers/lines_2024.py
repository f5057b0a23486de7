"""An MCP server of protocol version 2024-11-05 without an SDK: one JSON-RPC message per line.

The first argument selects its behaviour:
- `plain`: initialize, tools/list in pages of one, tools/call
- `strict`: like `plain`, but it exits when the first message is not `initialize`, as some SDKs do
- `chatty`: like `plain`, but it first prints a banner on stdout
- `damaged`: its results are invalid JSON, or nested too deeply
- `endless`: the pages of its tools/list never end
- `promptless`: it has no tools and no tools/list
- `floods`: it reports progress as often as `reports` says before it answers a call, with a log message each time
- `odd`: its tools and its handshake are those of the JSON in the second argument; it answers a call with the tool's
  argument `answer`, or else with its name
- `malformed`: it answers a call in the form that the argument `form` names
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


GOOD = '{"jsonrpc": "2.0", "id": {id}, "result": {"content": [{"type": "text", "text": "fine"}]}}'
OTHER = GOOD.replace("{id}", "987654")
FORMS = {
    # no outcome can be read
    "neither": '{"jsonrpc": "2.0", "id": {id}}',
    "result is a list": '{"jsonrpc": "2.0", "id": {id}, "result": []}',
    "error is a text": '{"jsonrpc": "2.0", "id": {id}, "error": "oh"}',
    "code is a text": '{"jsonrpc": "2.0", "id": {id}, "error": {"code": "-32050", "message": null}}',
    "not a number": '{"jsonrpc": "2.0", "id": {id}, "result": {"content": [], "n": NaN}}',
    "too deep, id last": '{"result": {"content": [], "n": ' + DEEP + '}, "jsonrpc": "2.0", "id": {id}}',
    "cut off in a text": '{"jsonrpc": "2.0", "id": {id}, "result": {"content": [{"type": "te',
    "cut off after a bracket": '{"jsonrpc": "2.0", "id": {id}, "result": {"content": [\n' + OTHER,
    # the outcome is told, in another form
    "with a method": GOOD.replace('"id"', '"method": "tools/call", "id"'),
    "no version": GOOD.replace('"jsonrpc": "2.0", ', ""),
    "another version": GOOD.replace('"2.0"', "1"),
    "id is a text": GOOD.replace("{id}", '"{id}"'),
    "id is a double": GOOD.replace("{id}", "{id}.0"),
    "an empty error": GOOD[:-1] + ', "error": null}',
    "a batch": '[{"jsonrpc": "2.0", "method": "notifications/x"}, ' + GOOD + "]",
    "over several lines": GOOD.replace("[", "\n[\n")
    .replace("{", "{\n")
    .replace("{\nid}", "{id}")
    .replace("}}", "}\n}"),
    "after a text": "Computing ... " + GOOD,
    "before a text": GOOD + "done",
    "two on a line": OTHER + GOOD,
}


def send(message: dict) -> None:
    print(json.dumps(message), flush=True)


def result(request: dict, content: dict) -> None:
    send({"jsonrpc": "2.0", "id": request["id"], "result": content})


def error(request: dict, code: int, message: str) -> None:
    send({"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}})


def initialize(request: dict) -> None:
    if MODE == "odd" and (handshake := json.loads(sys.argv[2]).get("handshake")):
        result(request, handshake)
        return
    result(
        request,
        {
            "protocolVersion": "2024-11-05",
            "capabilities": {} if MODE == "promptless" else {"tools": {}},
            "serverInfo": {"name": "lines", "version": "1"},
        },
    )


def list_tools(request: dict) -> None:
    if MODE == "odd":
        result(request, {"tools": json.loads(sys.argv[2])["tools"]})
        return
    page = int((request.get("params") or {}).get("cursor") or 0)
    if MODE == "endless":
        result(request, {"tools": [{**TOOLS[0], "name": f"tool{page}"}], "nextCursor": str(page + 1)})
        return
    following = {"nextCursor": str(page + 1)} if page + 1 < len(TOOLS) else {}
    result(request, {"tools": [TOOLS[page]], **following})


def call(request: dict) -> None:
    name, arguments = request["params"]["name"], request["params"].get("arguments", {})
    if MODE == "malformed" and "form" in arguments:
        print(FORMS[arguments["form"]].replace("{id}", str(request["id"])), flush=True)
    elif MODE == "odd":
        told = arguments.get("answer", {"content": [{"type": "text", "text": name}]})
        if arguments.get("crash"):
            os._exit(3)
        send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        result(request, told)
    elif MODE == "floods":
        progress = {"progressToken": request["params"]["_meta"]["progressToken"], "total": arguments["reports"]}
        for number in range(1, arguments["reports"] + 1):
            params = {**progress, "progress": number, "message": f"at {number}"}
            log = {"level": "info", "data": number}
            lines = [
                {"jsonrpc": "2.0", "method": "notifications/progress", "params": params},
                {"jsonrpc": "2.0", "method": "notifications/message", "params": log},
            ]
            sys.stdout.write("".join(json.dumps(line) + "\n" for line in lines))
        if arguments.get("then") == "silence":
            sys.stdout.flush()
            sys.stdin.readline()
        result(request, {"content": [{"type": "text", "text": "done"}]})
    elif name == "add":
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
