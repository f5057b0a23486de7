"""The declarations of a flow: schemas, examples and test cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.errors import Code
from stepflow.flow.format import EXAMPLE, EXPECTED_ERROR, SCHEMA_PARTS, SCHEMAS, TEST, names
from stepflow.flow.members import MemberReader
from stepflow.flow.source import describe

if TYPE_CHECKING:
    from stepflow.flow.source import DocumentPath

_SCHEMA_PARTS = names(SCHEMA_PARTS)


class DeclarationReader(MemberReader):
    """Methods take a tree and its document path."""

    def schemas(self, tree: object, doc_path: DocumentPath) -> dict[str, Any]:
        if tree is None:
            return {}
        if not isinstance(tree, dict):
            self.problem(doc_path, f"must be a mapping, not {describe(tree)}")
            return {}
        misplaced = () if isinstance(tree.get("properties"), dict) else tuple(p for p in _SCHEMA_PARTS if p in tree)
        for part in misplaced:
            self.problem((*doc_path, part), f"belongs under `properties`: write `schemas.properties.{part}`")

        self.note_unread(tree, doc_path, names(SCHEMAS), tolerated=misplaced)
        definitions = self.schema_map(tree, "$defs", doc_path)
        properties = self.mapping(tree, "properties", doc_path)
        self.note_unread(properties, (*doc_path, "properties"), _SCHEMA_PARTS)

        parts = {part: properties[part] for part in _SCHEMA_PARTS if properties.get(part) is not None}
        for part, schema in parts.items():
            self.check_schema(schema, (*doc_path, "properties", part))

        for part in ("variables", "steps"):
            if part in parts:
                at = (*doc_path, "properties", part)
                if isinstance(parts[part], dict):
                    self.schema_map(parts[part], "properties", at)
                elif isinstance(parts[part], bool):
                    self.problem(at, f"must be an object schema, not {describe(parts[part])}")

        found = {"$defs": definitions, "properties": parts}
        kept = {key: value for key, value in found.items() if value}
        return {"type": "object", **kept} if kept else {}

    def schema_map(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> dict[str, Any]:
        schemas = self.mapping(tree, key, doc_path)
        for name, schema in schemas.items():
            self.check_schema(schema, (*doc_path, key, name))
        return schemas

    def check_schema(self, schema: object, doc_path: DocumentPath) -> None:
        if not isinstance(schema, (dict, bool)):
            self.problem(doc_path, f"a schema is a mapping, not {describe(schema)}")

    def test(self, tree: object, doc_path: DocumentPath) -> dict[str, Any] | None:
        if tree is None:
            return None
        if not isinstance(tree, dict):
            self.problem(doc_path, f"must be a mapping, not {describe(tree)}")
            return None
        self.note_unread(tree, doc_path, names(TEST))
        alias = "config" if tree.get("config") is not None else "stepflow_config"
        found = {
            "configFile": self.text(tree, "configFile", doc_path),
            "config": self.mapping(tree, alias, doc_path) if tree.get(alias) is not None else None,
            "cases": [
                self.case(one, (*doc_path, "cases", i)) for i, one in enumerate(self.listing(tree, "cases", doc_path))
            ],
        }
        return {key: value for key, value in found.items() if value is not None and value != []} or None

    def case(self, tree: object, doc_path: DocumentPath) -> dict[str, Any]:
        case = self.example(tree, doc_path, also=("output",))
        if isinstance(tree, dict) and tree.get("output") is not None:
            case["output"] = self.expected(tree["output"], (*doc_path, "output"))
        return case

    def example(self, tree: object, doc_path: DocumentPath, also: tuple[str, ...] = ()) -> dict[str, Any]:
        if not isinstance(tree, dict):
            self.problem(doc_path, f"must be a mapping with `name` and `input`, not {describe(tree)}")
            return {"name": "", "input": None}
        self.note_unread(tree, doc_path, (*names(EXAMPLE), *also))
        found: dict[str, Any] = {"name": self.required_text(tree, "name", doc_path)}
        if (description := self.text(tree, "description", doc_path)) is not None:
            found["description"] = description

        if "input" not in tree:
            self.problem((*doc_path, "input"), "is required (it may be null)")
        found["input"] = tree.get("input")
        return found

    def expected(self, tree: object, doc_path: DocumentPath) -> dict[str, Any]:
        """Check a FlowResult: `{outcome: success, result}` or `{outcome: failed, error: {code, message, data?}}`."""
        outcome = tree.get("outcome") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or outcome not in ("success", "failed"):
            self.problem((*doc_path, "outcome"), "must be `success` or `failed`")
            return {}
        companion = "result" if outcome == "success" else "error"
        if companion not in tree:
            self.problem((*doc_path, companion), f"is required when the outcome is `{outcome}`")
        self.note_unread(tree, doc_path, ("outcome", companion))

        if outcome == "success":
            return {"outcome": outcome, "result": tree.get("result")}
        return {"outcome": outcome, "error": self.expected_error(tree.get("error"), (*doc_path, "error"))}

    def expected_error(self, error: object, at: DocumentPath) -> dict[str, Any]:
        if not isinstance(error, dict):
            self.problem(at, f"must be a mapping with `code` and `message`, not {describe(error)}")
            return {}
        self.note_unread(error, at, names(EXPECTED_ERROR))
        if not isinstance(error.get("code"), str) or error["code"] not in Code.__members__:
            self.problem((*at, "code"), "must be the name of an error code: " + ", ".join(Code.__members__))

        found = {"code": error.get("code"), "message": self.required_text(error, "message", at)}
        if error.get("data") is not None:
            found["data"] = error["data"]
        return found
