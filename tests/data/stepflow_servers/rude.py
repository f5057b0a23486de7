"""A misbehaving server; the first argument selects the behaviour. Standard library only."""

import json
import os
import sys
import time
from pathlib import Path


def reply(request, result):
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)


def serve(execute, capabilities=None, heard=None, components=({"component": "/it"},)):
    for text in sys.stdin:
        request = json.loads(text)
        if "method" not in request:
            heard.append(request)
            continue
        match request["method"]:
            case "initialize":
                reply(request, {"server_protocol_version": 1, "capabilities": capabilities})
            case "components/list":
                reply(request, {"components": list(components)})
            case "components/execute" if capabilities is None and request["params"]["component"] != "/it":
                error = {"code": -32001, "message": "no such component"}
                print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}), flush=True)
            case "components/execute":
                execute(request)
            case "components/cancel":
                reply({"id": request["params"]["id"]}, {"output": "cancelled"})


def trivial(request):
    reply(request, {"output": request["params"]["input"]})


def exits():
    print("no licence for today", file=sys.stderr)
    sys.exit(7)


def silent():
    print("still warming up", file=sys.stderr, flush=True)
    time.sleep(300)


def deaf_to_signals():
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(trivial)
    time.sleep(300)


def garbage():
    while True:
        print("Welcome to my server!", flush=True)
        time.sleep(0.01)


def garbage_first():
    print("Welcome to my server!")
    print('[1, 2, {"id": 1}]')
    sys.stdout.buffer.write(b"\xff\xfe\n\n")
    serve(trivial)


def refuses():
    request = json.loads(sys.stdin.readline())
    error = {"code": -32600, "message": "wrong protocol version"}
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}), flush=True)
    time.sleep(300)


def crashes_on_second_start():
    marker = Path(sys.argv[2])
    if marker.exists():
        print("cannot start twice", file=sys.stderr)
        sys.exit(9)
    marker.touch()
    serve(lambda request: os._exit(1))


def malformed():
    """Answers in the form that the input names; `{id}` is the id of the request."""
    deep = "[" * 2_000 + "]" * 2_000
    good = '{"jsonrpc": "2.0", "id": {id}, "result": {"output": "fine"}}'
    other = good.replace("{id}", "0")
    forms = {
        # no outcome can be read
        "no output": '{"jsonrpc": "2.0", "id": {id}, "result": {}}',
        "neither": '{"jsonrpc": "2.0", "id": {id}}',
        "result is a number": '{"jsonrpc": "2.0", "id": {id}, "result": 5}',
        "error is a text": '{"jsonrpc": "2.0", "id": {id}, "error": "oh"}',
        "code is a text": '{"jsonrpc": "2.0", "id": {id}, "error": {"code": "-32003", "message": null}}',
        "not a number": '{"jsonrpc": "2.0", "id": {id}, "result": {"output": NaN}}',
        "too deep, id last": '{"result": {"output": ' + deep + '}, "jsonrpc": "2.0", "id": {id}}',
        "cut off in a text": '{"jsonrpc": "2.0", "id": {id}, "result": {"output": "fi',
        "cut off after a bracket": '{"jsonrpc": "2.0", "id": {id}, "result": {"output": [\n'
        + good.replace("{id}", "0"),
        "too large, id last": '{"result": {"output": "' + "x" * 18_000_000 + '"}, "id": {id}, "jsonrpc": "2.0"}',
        # the outcome is told, in another form
        "no version": '{"id": {id}, "result": {"output": "fine"}}',
        "another version": good.replace('"2.0"', "1"),
        "id is a text": good.replace("{id}", '"{id}"'),
        "id is a double": good.replace("{id}", "{id}.0"),
        "with a method": good.replace('"id"', '"method": "components/execute", "id"'),
        "an empty error": '{"jsonrpc": "2.0", "id": {id}, "result": {"output": "fine"}, "error": null}',
        "a batch": '[{"jsonrpc": "2.0", "method": "x"}, ' + good + "]",
        "over several lines": good.replace("{", "{\n  ").replace("\n  id}", "id}").replace("}}", "\n}\n}"),
        "after a text": "Computing ... " + good,
        "before a text": good + "done",
        "two on a line": other + good,
    }
    serve(lambda request: print(forms[request["params"]["input"]].replace("{id}", str(request["id"])), flush=True))


def lists_oddly():
    odd = [
        None,
        5,
        {"description": "no name"},
        {"component": "/odd", "description": 5, "path": 7},
        {"component": "/it"},
    ]
    serve(trivial, components=odd)


def breaks_off():
    """Prints the first line of a reply, and never the rest."""
    serve(lambda request: print('{"jsonrpc": "2.0", "id": ' + f"{request['id']},", flush=True))


def declares():
    serve(
        lambda request: print(
            json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": request["params"]["input"]}), flush=True
        )
    )


def modern():
    """Announces what our SDK announces."""

    def execute(request):
        kind = request["params"]["input"]
        if kind == "params":
            reply(request, {"output": {name: value for name, value in request["params"].items() if name != "input"}})
        if kind == "progress":
            for done in (1, 2):
                note = {"id": request["id"], "done": done, "total": 2, "message": f"part {done}"}
                print(json.dumps({"jsonrpc": "2.0", "method": "components/progress", "params": note}))
            reply(request, {"output": None})
        if isinstance(kind, int):
            reply(request, {"output": "x" * kind})

    serve(execute, {"progress": True, "cancel": True, "lineBytesMax": 100_000})


def stops_reading():
    """Reads nothing more after the first execute, until it is started again."""

    def execute(request):
        if not Path(sys.argv[2]).exists():
            Path(sys.argv[2]).touch()
            time.sleep(300)
        reply(request, {"output": len(request["params"]["input"])})

    serve(execute, {"progress": True, "cancel": True, "lineBytesMax": 17_000_000})


def asks():
    """Sends the requests it is given while the execute runs, and returns the replies."""

    def execute(request):
        replies = []
        for method, params in request["params"]["input"]:
            print(
                json.dumps({"jsonrpc": "2.0", "id": f"a{len(replies)}", "method": method, "params": params}), flush=True
            )
            replies.append(json.loads(sys.stdin.readline()))
        reply(request, {"output": replies})

    serve(execute)


def asks_late():
    """Answers first and asks afterwards; the replies to that are the output of the next execute."""
    heard = []

    def execute(request):
        reply(request, {"output": heard})
        params = {"data": 1, "observability": request["params"]["observability"]}
        print(json.dumps({"jsonrpc": "2.0", "id": "late", "method": "blobs/put", "params": params}), flush=True)

    serve(execute, heard=heard)


def anonymous():
    """Behaves like 0.7.0 when probed, but does not say which execute asks; returns the reply to its one request."""
    waiting = []
    for text in sys.stdin:
        message = json.loads(text)
        if "method" not in message:
            reply(waiting.pop(0), {"output": message})
        elif message["method"] == "initialize":
            reply(message, {"server_protocol_version": 1})
        elif message["method"] == "components/list":
            reply(message, {"components": []})
        elif message["method"] == "components/execute" and message["params"]["component"] == "/it":
            waiting.append(message)
            put = {"data": message["params"]["input"]}
            print(json.dumps({"jsonrpc": "2.0", "id": "a", "method": "blobs/put", "params": put}), flush=True)


def echoes_secret():
    print("using key", os.environ["SERVICE_API_KEY"], file=sys.stderr)
    sys.exit(1)


def trivial_server():
    serve(trivial)


{name: value for name, value in globals().items() if callable(value)}[sys.argv[1]]()
