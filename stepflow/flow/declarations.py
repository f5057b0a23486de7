"""The declarations of a flow: schemas, examples and test cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.errors import Code
from stepflow.flow.members import MemberReader
from stepflow.flow.source import describe

if TYPE_CHECKING:
    from stepflow.flow.source import DocumentPath

_SCHEMA_PARTS = ("input", "output", "variables", "steps")


class DeclarationReader(MemberReader):
    """Methods take a tree and its document path."""

    def schemas(self, tree: object, doc_path: DocumentPath) -> dict[str, Any]:
        if tree is None:
            return {}
        if not isinstance(tree, dict):
            raise self.invalid(doc_path, f"must be a mapping, not {describe(tree)}")
        if not isinstance(tree.get("properties"), dict):
            for part in _SCHEMA_PARTS:
                if part in tree:
                    raise self.invalid(
                        (*doc_path, part), f"belongs under `properties`: write `schemas.properties.{part}`"
                    )
        self.note_unread(tree, doc_path, ("type", "$defs", "properties"))
        definitions = self.schema_map(tree, "$defs", doc_path)
        properties = self.mapping(tree, "properties", doc_path)
        self.note_unread(properties, (*doc_path, "properties"), _SCHEMA_PARTS)

        parts = {part: properties[part] for part in _SCHEMA_PARTS if properties.get(part) is not None}
        for part, schema in parts.items():
            self.check_schema(schema, (*doc_path, "properties", part))

        for part in ("variables", "steps"):
            if part in parts:
                at = (*doc_path, "properties", part)
                if not isinstance(parts[part], dict):
                    raise self.invalid(at, f"must be an object schema, not {describe(parts[part])}")
                self.schema_map(parts[part], "properties", at)

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
            raise self.invalid(doc_path, f"a schema is a mapping, not {describe(schema)}")

    def test(self, tree: object, doc_path: DocumentPath) -> dict[str, Any] | None:
        if tree is None:
            return None
        if not isinstance(tree, dict):
            raise self.invalid(doc_path, f"must be a mapping, not {describe(tree)}")
        self.note_unread(tree, doc_path, ("configFile", "config", "stepflow_config", "cases"))
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
        assert isinstance(tree, dict)  # or it would not be an example
        if tree.get("output") is not None:
            case["output"] = self.expected(tree["output"], (*doc_path, "output"))
        return case

    def example(self, tree: object, doc_path: DocumentPath, also: tuple[str, ...] = ()) -> dict[str, Any]:
        if not isinstance(tree, dict):
            raise self.invalid(doc_path, f"must be a mapping with `name` and `input`, not {describe(tree)}")
        self.note_unread(tree, doc_path, ("name", "description", "input", *also))
        found: dict[str, Any] = {"name": self.required_text(tree, "name", doc_path)}
        if (description := self.text(tree, "description", doc_path)) is not None:
            found["description"] = description

        if "input" not in tree:
            raise self.invalid((*doc_path, "input"), "is required (it may be null)")
        found["input"] = tree["input"]
        return found

    def expected(self, tree: object, doc_path: DocumentPath) -> dict[str, Any]:
        """Check a FlowResult: `{outcome: success, result}` or `{outcome: failed, error: {code, message, data?}}`."""
        outcome = tree.get("outcome") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or outcome not in ("success", "failed"):
            raise self.invalid((*doc_path, "outcome"), "must be `success` or `failed`")
        companion = "result" if outcome == "success" else "error"
        if companion not in tree:
            raise self.invalid((*doc_path, companion), f"is required when the outcome is `{outcome}`")
        self.note_unread(tree, doc_path, ("outcome", companion))

        if outcome == "success":
            return {"outcome": outcome, "result": tree["result"]}

        error, at = tree["error"], (*doc_path, "error")
        if not isinstance(error, dict):
            raise self.invalid(at, f"must be a mapping with `code` and `message`, not {describe(error)}")
        self.note_unread(error, at, ("code", "message", "data"))
        if not isinstance(error.get("code"), str) or error["code"] not in Code.__members__:
            raise self.invalid((*at, "code"), "must be the name of an error code: " + ", ".join(Code.__members__))

        found = {"code": error["code"], "message": self.required_text(error, "message", at)}
        if error.get("data") is not None:
            found["data"] = error["data"]
        return {"outcome": outcome, "error": found}
