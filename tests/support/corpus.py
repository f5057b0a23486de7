"""A corpus of small flows for the run engine, with their expected results."""

from __future__ import annotations

from typing import Any

from stepflow.codec import blob_id, encode
from support.engine import World


def step(name: str, component: str, input: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": name, "component": component, "input": input, **more}


def ref(name: str, path: str | None = None) -> dict[str, Any]:
    return {"$step": name} if path is None else {"$step": name, "path": path}


DOUBLE = {"steps": [step("d", "/c/add", {"a": {"$input": "$"}, "b": {"$input": "$"}})], "output": ref("d", "sum")}
COUNT_DOWN = {
    "steps": [step("n", "/c/add", {"a": {"$input": "n"}, "b": -1})],
    "output": {
        "$if": {"$coalesce": [{"$input": "last"}, False]},
        "then": {"result": ref("n", "sum")},
        "else": {"next": {"n": ref("n", "sum"), "last": True}},
    },
}
LARGE = {
    "steps": [step("b", "/c/big", {"$input": "$"}), step("k", "/c/medium", {"$input": "$"})],
    "output": {"whole": ref("b"), "text": ref("b", "text"), "medium": ref("k", "text"), "null": None},
}
"""Whole and in part: a result in the blob store, and one in the journal."""
EVALUATED = {"steps": [step("k", "/c/medium", {"$input": "medium"})], "output": ref("k")}
GROWING = {
    "steps": [step("b", "/c/big", {"$input": "n"}), step("n", "/c/add", {"a": {"$input": "n"}, "b": 1})],
    "output": {"next": {"n": ref("n", "sum"), "text": ref("b", "text"), "last": {"$coalesce": [{"$input": "$"}, 0]}}},
}
LARGE_RESULT = {"steps": [step("b", "/c/big", {"$input": "n"})], "output": {"result": ref("b")}}
MIXED = {
    "steps": [step("q", "/c/add", {"a": {"$input": "v"}, "b": 1})],
    "output": ref("q", "sum"),
}

CORPUS: dict[str, dict[str, Any]] = {
    "empty": {},
    "chain": {
        "steps": [
            step("a", "/c/add", {"a": {"$input": "n"}, "b": 1}),
            step("b", "/c/add", {"a": ref("a", "sum"), "b": 1}),
            step("c", "/c/add", {"a": ref("b", "sum"), "b": 1}),
        ],
        "output": ref("c", "sum"),
    },
    "diamond": {
        "steps": [
            step("a", "/c/id", {"$input": "$"}),
            step("b", "/c/id", [ref("a"), 1]),
            step("c", "/c/id", [ref("a"), 2]),
            step("d", "/c/id", [ref("b"), ref("c")]),
        ],
        "output": ref("d"),
    },
    "failure travels": {
        "steps": [step("a", "/c/fail"), step("b", "/c/id", ref("a")), step("s", "/c/id", 1)],
        "output": [ref("s"), ref("b")],
    },
    "late discovery": {
        "steps": [step("c", "/c/id", True), step("a", "/c/id", "a"), step("b", "/c/fail")],
        "output": {"$if": ref("c"), "then": ref("a"), "else": ref("b")},
    },
    "coalesce": {
        "steps": [step("x", "/c/null"), step("y", "/c/null"), step("z", "/c/id", "z"), step("never", "/c/fail")],
        "output": {"$coalesce": [ref("x"), ref("y"), ref("z"), ref("never")]},
    },
    "must execute": {
        "steps": [step("side", "/c/fail", mustExecute=True), step("a", "/c/id", 1)],
        "output": ref("a"),
    },
    "default": {
        "steps": [step("a", "/c/fail", onError={"action": "useDefault", "defaultValue": {"$input": "x"}})],
        "output": ref("a"),
    },
    "transport": {"steps": [step("a", "/c/lost", 7)], "output": ref("a")},
    "large values": {
        "steps": [
            step("a", "/c/big", 1),
            step("b", "/c/add", {"a": ref("a", "n"), "b": 1}),
            step("w", "/c/id", ref("a")),
        ],
        "output": [ref("b", "sum"), ref("w", "n")],
    },
    "sleep": {
        "steps": [step("z", "/builtin/sleep", {"duration_ms": 5000, "passthrough": [1]}), step("a", "/c/id", ref("z"))],
        "output": ref("a"),
    },
    "signals": {
        "steps": [
            step("w", "/builtin/wait_for_signal", {"name": "go"}),
            step("v", "/builtin/wait_for_signal", {"name": "go", "after": ref("w")}),
            step("o", "/builtin/wait_for_signal", {"name": "other"}),
            step("a", "/c/id", [ref("w", "payload"), ref("v", "payload")]),
            step("b", "/c/id", 7),
        ],
        "output": [ref("a"), ref("o", "payload.n"), ref("b")],
    },
    "map": {
        "steps": [
            step("m", "/builtin/map", {"workflow": {"$literal": DOUBLE}, "items": [1, 2, 3, 4], "max_concurrency": 2})
        ],
        "output": ref("m"),
    },
    "iterate": {
        "steps": [step("i", "/builtin/iterate", {"flow": {"$literal": COUNT_DOWN}, "initial_input": {"n": 9}})],
        "output": ref("i"),
    },
    "map of failures": {
        "steps": [step("m", "/builtin/map", {"workflow": {"$literal": MIXED}, "items": [{"v": 1}, {}, {"v": 3}]})],
        "output": ref("m"),
    },
    "large map": {
        "steps": [
            step("m", "/builtin/map", {"workflow": {"$literal": LARGE}, "items": [1, 2, 3], "max_concurrency": 2}),
            step("f", "/c/id", [ref("m", "successful"), ref("m", "results[1].result.whole.n")]),
            step("g", "/c/id", ref("m", "results[2]")),
            step("e", "/builtin/eval", {"flow_id": blob_id(encode(EVALUATED)), "input": ref("m", "results[0].result")}),
        ],
        "output": {
            "all": ref("m"),
            "few": ref("f"),
            "one": ref("g", "result.medium"),
            "evaluated": ref("e", "result.result"),
            "if": {"$if": ref("m"), "then": {"$coalesce": [ref("m", "results[0].result.null"), ref("f")]}, "else": 0},
        },
    },
    "large iterate": {
        "steps": [
            step(
                "i",
                "/builtin/iterate",
                {"flow": {"$literal": GROWING}, "initial_input": {"n": 0}, "max_iterations": 4},
            ),
            step("a", "/c/id", ref("i", "iterations")),
        ],
        "output": [ref("a"), ref("i")],
    },
    "iterate to a large result": {
        "steps": [step("i", "/builtin/iterate", {"flow": {"$literal": LARGE_RESULT}, "initial_input": {"n": 1}})],
        "output": ref("i", "result"),
    },
    "call-back": {
        "steps": [
            step("p", "/c/parent", {"flow": {"$literal": DOUBLE}, "inputs": [1, 2]}),
            step("a", "/c/id", ref("p")),
        ],
        "output": ref("a"),
    },
}

EXPECTED: dict[str, list[Any]] = {
    "empty": [None],
    "chain": [4],
    "diamond": [[[{"n": 1}, 1], [{"n": 1}, 2]]],
    "failure travels": [("COMPONENT_FAILED", "failed on null")],
    "late discovery": ["a"],
    "coalesce": ["z"],
    "must execute": [1],
    "default": [{"$input": "x"}],
    "transport": [7],
    "large values": [[2, 1]],
    "sleep": [{"duration_ms": 5000, "passthrough": [1]}],
    "signals": [[[1, [2]], 5, 7]],
    "map": [{"results": [{"outcome": "success", "result": 2 * n} for n in (1, 2, 3, 4)], "successful": 4, "failed": 0}],
    "iterate": [{"result": 7, "iterations": 2, "terminated": False}],
    "call-back": [[2, 4]],
}


SIGNALS: dict[str, list[tuple[int, str, Any]]] = {
    "signals": [(0, "go", 1), (0, "other", {"text": "x" * 40_000, "n": 5}), (0, "go", [2]), (0, "go", "unused")]
}


BLOBS = {blob_id(encode(EVALUATED)): encode(EVALUATED)}


def world(name: str, **options: Any) -> World:
    signals = list(SIGNALS.get(name, ()))
    return World(CORPUS[name], inputs=[{"n": 1}], signals=signals, blobs=dict(BLOBS), **options)
