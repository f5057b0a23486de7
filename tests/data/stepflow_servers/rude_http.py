"""A misbehaving HTTP server; the first argument selects the behaviour. Standard library only."""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HEARD = []
"""What was POSTed as a reply."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer(200, json.dumps({"status": "healthy"}).encode())

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "method" not in message:
            HEARD.append({**message, "instance": self.headers.get("Stepflow-Instance-Id")})
            self.answer(202, b'""')
            return
        self.request_id = message.get("id")
        if sys.argv[1] == "html":
            self.answer(200, b"<html>", "text/html")
            return
        match message["method"]:
            case "initialize":
                self.result({"server_protocol_version": 1})
            case "components/list":
                self.result({"components": [{"component": "/it"}]})
            case "components/execute":
                MODES[sys.argv[1]](self, message["params"]["input"])
            case _:
                self.answer(202, b'""')

    def answer(self, status, body, kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def message(self, **members):
        return json.dumps({"jsonrpc": "2.0", "id": self.request_id, **members}).encode()

    def result(self, result):
        self.answer(200, self.message(result=result))

    def begin_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Stepflow-Instance-Id", "instance-7")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def event(self, data):
        self.wfile.write(data)
        self.wfile.flush()


def plain(self, value):
    self.result({"output": value})


def statuses(self, value):
    """Answer with the status, type and body that the input names."""
    headers = {"Location": "/elsewhere", **value.get("headers", {})}
    self.answer(value["status"], value["body"].encode(), value.get("type", "application/json"), **headers)


def cut_off(self, value):
    self.begin_stream()
    self.event(b": a comment\n\n")


def chopped(self, value):
    """One event in many pieces, with line ends and fields of every kind."""
    self.begin_stream()
    text = self.message(result={"output": value}).decode()
    middle = text.index(",") + 1
    event = f": hello\r\nevent: message\r\nid: 4\r\ndata: {text[:middle]}\r\ndata:{text[middle:]}\r\n\r\n".encode()
    for index in range(0, len(event), 7):
        self.event(event[index : index + 7])


def endless(self, value):
    self.begin_stream()
    self.event(b"data: ")
    while True:
        self.event(b"x" * 1_000_000)


def large(self, value):
    self.answer(200, self.message(result={"output": "x" * value}))


def floods(self, value):
    """Report progress as often as the input says."""
    self.begin_stream()
    for number in range(1, value + 1):
        params = {"id": self.request_id, "done": number, "total": value}
        report = {"jsonrpc": "2.0", "method": "components/progress", "params": params}
        self.event(b"data: " + json.dumps(report).encode() + b"\n\n")
    self.event(b"data: " + self.message(result={"output": "done"}) + b"\n\n")


def asks(self, value):
    """Send the requests that it is given, and return the replies with the instance that they were for."""
    self.begin_stream()
    HEARD.clear()
    for number, (method, params) in enumerate(value):
        request = {"jsonrpc": "2.0", "id": f"a{number}", "method": method, "params": params}
        self.event(b"data: " + json.dumps(request).encode() + b"\n\n")
        while len(HEARD) <= number:
            time.sleep(0.001)
    self.event(b"data: " + self.message(result={"output": HEARD}) + b"\n\n")


def asks_and_stays(self, value):
    """Ask to run a flow, and note in the file that is the input what was answered."""
    self.begin_stream()
    HEARD.clear()
    request = {"jsonrpc": "2.0", "id": "a", "method": "flows/evaluate", "params": {"flow": {}, "input": 1}}
    self.event(b"data: " + json.dumps(request).encode() + b"\n\n")
    while not HEARD:
        time.sleep(0.001)
    Path(value).write_text(json.dumps(HEARD))
    self.event(b"data: " + self.message(result={"output": None}) + b"\n\n")


MODES = {name: value for name, value in list(globals().items()) if callable(value) and name not in ("Handler", "Path")}


def announce(server):
    print("Welcome to my server!")
    print('{"port": "none yet"}')
    print(json.dumps({"port": server.server_address[1]}), flush=True)


def main():
    port = int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2].isdigit() else 0
    match sys.argv[1]:
        case "exits":
            print("no licence for today", file=sys.stderr)
            sys.exit(7)
        case "says_nothing":
            time.sleep(300)
        case "port_taken_once":
            marker = Path(sys.argv[3])
            if not marker.exists():
                marker.write_text(str(port))
                while not marker.with_suffix(".taken").exists():
                    time.sleep(0.005)
            sys.argv[1] = "plain"
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if not port:
        announce(server)
    server.serve_forever()


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    main()
