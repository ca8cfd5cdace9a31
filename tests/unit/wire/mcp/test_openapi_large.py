"""A large public document: each of its 1,223 operations is a tool or is said not to be, and what agents get is right,
also when its schemas go in circles."""

import json
import lzma
import re
from pathlib import Path
from time import process_time
from typing import Any

import jsonschema
import pytest

from tollhouse.wire.mcp.openapi import MAX_NAME, METHODS, Picked, Reading, Toolset, tools_of
from tollhouse.wire.mcp.openapi_document import read
from tollhouse.wire.mcp.scan import THRESHOLD, scan

FILE = Path(__file__).parents[3] / "fixtures" / "openapi" / "github.json.xz"
PLACES = frozenset(("header", "cookie"))


@pytest.fixture(scope="module")
def data() -> bytes:
    return lzma.decompress(FILE.read_bytes())


@pytest.fixture(scope="module")
def whole(data: bytes) -> Any:
    return json.loads(data)


@pytest.fixture(scope="module")
def found(data: bytes) -> Toolset:
    return tools_of(read(data), Reading())


def operations(whole: Any) -> dict[str, Any]:
    """By the pointer that a message names them by."""
    return {
        f"/paths/{path.replace('~', '~0').replace('/', '~1')}/{method}": (path, item, item[method])
        for path, item in whole["paths"].items()
        for method in METHODS
        if method in item
    }


def test_every_operation_is_a_tool_or_is_said_not_to_be(whole: Any, found: Toolset) -> None:
    wanted = operations(whole)
    assert len(wanted) == 1223
    left_out = [told for told in found.dropped if told.startswith("/paths/")]
    assert [told.partition(":")[0].removesuffix("/servers") in wanted for told in left_out] == [True] * len(left_out)
    assert len(found.tools) + len(left_out) == len(wanted)
    (only,) = left_out
    place = "/paths/~1repos~1{owner}~1{repo}~1releases~1{release_id}~1assets/post/servers"
    assert only == f"{place}: it is at another place: https://uploads.github.com"
    for told in found.dropped:  # the rest are tools all the same
        assert told in left_out or told.endswith("tools that answer with it are without an output schema")
    hints = {tool.name: json.loads(tool.raw)["annotations"] for tool in found.tools}
    assert hints["gists_get"]["readOnlyHint"]
    assert hints["gists_delete"]["destructiveHint"]


def test_names_are_unique_and_short_and_stay(data: bytes, found: Toolset) -> None:
    names = [tool.name for tool in found.tools]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}", name) for name in names)
    some = tools_of(read(data), Reading(allow=Picked(tags=("gists",))))
    assert 15 < len(some.tools) < 40
    known = {tool.name: tool.raw for tool in found.tools}
    assert all(known[tool.name] == tool.raw for tool in some.tools)


def test_arguments_are_what_the_operation_takes(whole: Any, found: Toolset) -> None:
    """Each required parameter is a required argument; those of the path can be filled in."""
    schemas = {tool.name: json.loads(tool.raw)["inputSchema"] for tool in found.tools}
    parameters = whole["components"]["parameters"]
    by_id = {operation["operationId"]: (path, item, operation) for path, item, operation in operations(whole).values()}
    looked_at = 0
    for id, (path, item, operation) in by_id.items():
        schema = schemas.get(re.sub(r"[^A-Za-z0-9_-]+", "_", id))
        if schema is None:
            continue  # its name is marked, because it was too long or not the only one
        listed = [*item.get("parameters", []), *operation.get("parameters", [])]
        resolved = [parameters[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in listed]
        for one in resolved:
            if one["in"] not in PLACES:
                assert one["name"] in schema["properties"], (id, one["name"])
                assert one.get("required", False) is (one["name"] in schema.get("required", [])) or one["in"] == "query"
        assert set(re.findall(r"\{(\w+)\}", path)) <= set(schema["required"] if "{" in path else [])
        looked_at += 1
    assert looked_at > 1150


def test_schemas_are_json_schema(found: Toolset) -> None:
    """Of every thirtieth tool and of the ten largest: a check takes some ten milliseconds."""
    largest = sorted(found.tools, key=lambda tool: -len(tool.raw))[:10]
    for tool in (*found.tools[::30], *largest):
        said = json.loads(tool.raw)
        jsonschema.Draft202012Validator.check_schema(said["inputSchema"])
        jsonschema.Draft202012Validator.check_schema(said.get("outputSchema", {}))
    for tool in found.tools:  # no reference leads out of its schema
        said = json.loads(tool.raw)
        for schema in (said["inputSchema"], said.get("outputSchema", {})):
            text = json.dumps(schema)
            known = {f"#/$defs/{name}" for name in schema.get("$defs", ())}
            assert set(re.findall(r'"\$ref": "([^"]*)"', text)) <= known, tool.name


def test_circles_survive(whole: Any) -> None:
    """Three schemas that most operations use are made to go in circles: alone, by twos, and through a list."""
    schemas = whole["components"]["schemas"]

    def ref(name: str) -> Any:
        return {"$ref": f"#/components/schemas/{name}"}

    changed = {
        **schemas,
        "simple-user": _with(schemas["simple-user"], {"friends": {"type": "array", "items": ref("simple-user")}}),
        "minimal-repository": _with(schemas["minimal-repository"], {"twin": ref("repository")}),
        "repository": _with(schemas["repository"], {"twin": ref("minimal-repository")}),
    }
    bodies = {"type": "object", "properties": {"user": ref("simple-user"), "next": ref("chain")}}
    changed["chain"] = {"allOf": [bodies, {"properties": {"others": {"items": ref("chain"), "type": "array"}}}]}
    paths = {
        **whole["paths"],
        "/chains": {
            "post": {
                "operationId": "chains/create",
                "requestBody": {"content": {"application/json": {"schema": ref("chain")}}},
                "responses": {},
            }
        },
    }
    document = {**whole, "paths": paths, "components": {**whole["components"], "schemas": changed}}
    began = process_time()
    found = tools_of(read(json.dumps(document).encode()), Reading())
    assert process_time() - began < 20  # about one second
    assert len(found.tools) == 1223
    tools = {tool.name: json.loads(tool.raw) for tool in found.tools}
    circular = [name for name, tool in tools.items() if "$defs" in tool.get("outputSchema", {})]
    assert len(circular) > 50
    for name in circular[::20]:
        jsonschema.Draft202012Validator.check_schema(tools[name]["outputSchema"])
    validator = jsonschema.Draft202012Validator(tools["chains_create"]["inputSchema"])
    good: Any = {"others": [{"next": {"others": [{}]}}]}
    assert validator.is_valid(good)
    good["others"][0]["next"]["others"] = [{"next": 7}]
    assert not validator.is_valid(good)


def _with(schema: Any, properties: Any) -> Any:
    return {**schema, "properties": {**schema["properties"], **properties}}


def test_an_honest_document_is_not_suspected(found: Toolset) -> None:
    """No tool reaches the scan's threshold. (Every fourth is looked at; all together take some three seconds.)"""
    for tool in found.tools[::4]:
        findings, _ = scan(json.loads(tool.raw))
        assert sum(finding.score for finding in findings) < THRESHOLD, (tool.name, findings)
        assert not {"override", "secrecy"} & {finding.rule for finding in findings}, tool.name


def test_it_takes_its_time(data: bytes) -> None:
    began = process_time()
    found = tools_of(read(data), Reading())
    assert process_time() - began < 8  # about half a second
    assert sum(len(tool.raw) for tool in found.tools) < 12 << 20
    began = process_time()
    assert len(tools_of(read(data), Reading(allow=Picked(operations=("gists*",)))).tools) > 15
    assert process_time() - began < 4
