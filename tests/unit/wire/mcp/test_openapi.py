"""Documents become tools: what each says, what it takes, what is left out and why."""

import json
from contextlib import suppress
from pathlib import Path
from time import process_time
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.mcp import openapi_document
from tollhouse.wire.mcp.openapi import MAX_NAME, Picked, Reading, Toolset, tools_of
from tollhouse.wire.mcp.openapi_answer import HttpTool
from tollhouse.wire.mcp.openapi_document import OpenAPIError, read
from tollhouse.wire.mcp.openapi_request import BadArguments

FIXTURES = Path(__file__).parents[3] / "fixtures" / "openapi"


SCHEMA = "/paths/~1x/post/requestBody/content/application~1json/schema"


def compiled(name: str, **reading: Any) -> Toolset:
    return tools_of(read((FIXTURES / name).read_bytes()), Reading(**reading))


def document(paths: Any, version: str = "3.1.0", **more: Any) -> bytes:
    whole = {"openapi": version, "info": {"title": "t", "version": "1"}, "servers": [{"url": "http://a.test"}]}
    return json.dumps({**whole, "paths": paths, **more}).encode()


def one(operation: Any, method: str = "post", path: str = "/x", version: str = "3.1.0", **more: Any) -> Any:
    """The only tool of a document with this operation, as agents see it."""
    found = tools_of(read(document({path: {method: operation}}, version, **more)), Reading())
    assert found.dropped == ()
    return json.loads(found.tools[0].raw)


def by_name(found: Toolset) -> dict[str, HttpTool]:
    return {tool.name: tool for tool in found.tools}


def body(schema: Any, *, required: bool = True, media: str = "application/json") -> Any:
    return {"requestBody": {"required": required, "content": {media: {"schema": schema}}}, "responses": {}}


# ---- a whole document


def test_each_operation_is_a_tool() -> None:
    found = compiled("shop.yaml")
    assert [tool.name for tool in found.tools] == [
        "listArticles", "addArticle", "getArticle", "changeArticle", "removeArticle", "getPicture", "addPicture",
        "cancel_order",
    ]  # fmt: skip
    assert found.base == "http://127.0.0.1:8100"
    assert found.instructions == "Orders and articles of a small shop."
    for tool in found.tools:
        said = json.loads(tool.raw)
        jsonschema.Draft202012Validator.check_schema(said["inputSchema"])
        jsonschema.Draft202012Validator.check_schema(said.get("outputSchema", {}))
        assert said["inputSchema"]["type"] == "object"


def test_what_cannot_be_a_tool_is_left_out_and_named_with_its_place() -> None:
    assert compiled("shop.yaml").dropped == (
        "/paths/~1legacy~1{missing}/get: the path has {missing}, and no parameter of that name",
        "/paths/~1elsewhere/servers: it is at another place: https://uploads.example.com",
    )


def test_what_the_schemas_of_3_0_say_is_said_in_2020_12() -> None:
    tools = by_name(compiled("shop.yaml"))
    properties = json.loads(tools["listArticles"].raw)["inputSchema"]["properties"]
    assert properties["limit"] == {"type": "integer", "default": 20, "maximum": 100, "exclusiveMinimum": 0}
    assert properties["sort_by"] == {"type": ["string", "null"], "enum": ["name", "price", None]}
    taken = json.loads(tools["addArticle"].raw)["inputSchema"]
    assert taken["properties"]["price"] == {"type": ["number", "null"]}
    assert taken["properties"]["name"] == {"type": "string", "examples": ["Teapot"]}


def test_parts_of_an_object_are_one_object_without_what_goes_the_other_way() -> None:
    tool = json.loads(by_name(compiled("shop.yaml"))["addArticle"].raw)
    assert sorted(tool["inputSchema"]["properties"]) == ["Accept-Language", "kind", "name", "price", "secret"]
    assert tool["inputSchema"]["required"] == ["name"]
    assert sorted(tool["outputSchema"]["properties"]) == ["id", "kind", "name", "price"]
    assert tool["outputSchema"]["required"] == ["name", "id"]


def test_a_list_is_put_into_an_object() -> None:
    tool = by_name(compiled("shop.yaml"))["listArticles"]
    assert tool.wrapped
    assert json.loads(tool.raw)["outputSchema"]["properties"]["result"]["type"] == "array"


def test_annotations_come_from_the_method_and_the_extension() -> None:
    tools = by_name(compiled("shop.yaml"))
    said = {name: json.loads(tool.raw)["annotations"] for name, tool in tools.items()}
    assert said["getArticle"] == {"readOnlyHint": True, "openWorldHint": True}
    assert said["removeArticle"] == {
        "readOnlyHint": False, "openWorldHint": True, "destructiveHint": True, "idempotentHint": True
    }  # fmt: skip
    assert said["addArticle"]["idempotentHint"] is False
    assert said["cancel_order"]["idempotentHint"] is True
    repeatable = {name for name, tool in tools.items() if tool.repeatable}
    assert repeatable == {
        "listArticles", "getArticle", "changeArticle", "removeArticle", "getPicture", "cancel_order"
    }  # fmt: skip


def test_parameters_of_one_name_at_two_places_are_told_apart() -> None:
    tool = by_name(compiled("shop.yaml"))["changeArticle"]
    assert sorted(json.loads(tool.raw)["inputSchema"]["properties"]) == [
        "id", "id_query", "kind", "name", "price", "secret"
    ]  # fmt: skip
    request = tool.operation.request(b'{"id":7,"id_query":"c1","name":"cup"}')
    assert (request.method, request.target, request.body) == (b"PUT", b"/v1/articles/7?id=c1", b'{"name":"cup"}')


def test_no_member_of_an_object_poses_as_the_gateways_key() -> None:
    paths = {"/x": {"get": {"parameters": [{"name": "more", "in": "query", "schema": {"type": "object"}}]}}}
    schemes = {"k": {"type": "apiKey", "in": "query", "name": "api_key"}}
    data = document(paths, components={"securitySchemes": schemes}, security=[{"k": []}])
    (tool,) = tools_of(read(data), Reading(credentials=frozenset(("k",)))).tools
    assert tool.operation.request(b'{"more":{"a":1}}').target == b"/x?a=1"
    with pytest.raises(BadArguments, match="'api_key': that is another one"):
        tool.operation.request(b'{"more":{"api_key":"mine"}}')


def test_a_long_chain_of_references_takes_no_longer_for_its_length() -> None:
    def chain(length: int) -> bytes:
        text = {"type": "string"}
        schemas = {
            f"S{n}": {"oneOf": [{"$ref": f"#/components/schemas/S{n + 1}"} if n + 1 < length else text, text]}
            for n in range(length)
        }
        return document({"/x": {"post": body({"$ref": "#/components/schemas/S0"})}}, components={"schemas": schemas})

    began = process_time()
    assert len(tools_of(read(chain(3000)), Reading()).tools) == 1
    assert process_time() - began < 3


def test_the_schemas_of_all_tools_are_bounded_together() -> None:
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(400)}}
    schemas = {"W": {"type": "object", "properties": {f"w{n}": {"$ref": "#/components/schemas/V"} for n in range(40)}}}
    paths = {f"/p{n}": {"post": body({"$ref": "#/components/schemas/W"})} for n in range(9)}
    data = document(paths, components={"schemas": {**schemas, "V": wide}})
    assert len(tools_of(read(data), Reading()).tools) == 9
    with pytest.raises(OpenAPIError, match="the schemas have more than 2,000 parts; `select` fewer"):
        tools_of(read(data), Reading(parts=2000))


def test_references_in_a_circle_end_in_definitions() -> None:
    found = compiled("circular.json")
    assert [tool.name for tool in found.tools] == ["plant", "pair"]
    assert found.dropped == ("/components/schemas/Loop: the schema is about itself and nothing else",)
    for tool in found.tools:
        schema = json.loads(tool.raw)["inputSchema"]
        jsonschema.Draft202012Validator.check_schema(schema)
    plant = json.loads(found.tools[0].raw)
    validator = jsonschema.Draft202012Validator(plant["inputSchema"])
    deep: dict[str, Any] = {"name": "a", "children": [{"name": "b", "children": [{"name": "c"}], "parent": None}]}
    validator.validate(deep)
    deep["children"][0]["children"][0]["name"] = 1
    assert not validator.is_valid(deep)
    assert plant["inputSchema"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    assert plant["outputSchema"]["$defs"].keys() == {"Tree"}


def test_a_large_document_is_read_and_filtered_in_no_time() -> None:
    schemas = {
        f"S{n}": {
            "type": "object",
            "properties": {f"p{i}": {"type": "string"} for i in range(8)}
            | {"next": {"$ref": f"#/components/schemas/S{(n + 1) % 300}"}},
        }
        for n in range(300)
    }
    answer = {
        "200": {"description": "", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/S1"}}}}
    }
    paths = {
        f"/r{n}/{{id}}": {
            method: {
                "operationId": f"{method}R{n}",
                "tags": [f"t{n % 10}"],
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": answer,
            }
            for method in ("get", "put", "post", "delete")
        }
        for n in range(250)
    }
    data = document(paths, components={"schemas": schemas})
    everything = tools_of(read(data), Reading())
    assert len(everything.tools) == 1000
    assert len({tool.name for tool in everything.tools}) == 1000
    # A tool has its own arguments, not the whole document.
    assert sum(len(tool.raw) for tool in everything.tools) < 400_000
    chosen = tools_of(read(data), Reading(allow=Picked(tags=("t3",), methods=("GET",))))
    assert len(chosen.tools) == 25
    again = tools_of(
        read(yaml.safe_dump(json.loads(data)).encode()), Reading(allow=Picked(tags=("t3",), methods=("get",)))
    )
    assert sorted(tool.name for tool in again.tools) == sorted(tool.name for tool in chosen.tools)


@pytest.mark.parametrize(("name", "tools"), [("petstore.yaml", 19), ("museum.yaml", 8)])
def test_documents_that_others_have_written(name: str, tools: int) -> None:
    found = compiled(name)
    assert (len(found.tools), found.dropped) == (tools, ())
    for tool in found.tools:
        said = json.loads(tool.raw)
        jsonschema.Draft202012Validator.check_schema(said["inputSchema"])
        jsonschema.Draft202012Validator.check_schema(said.get("outputSchema", {}))


# ---- selection and names


@pytest.mark.parametrize(
    ("reading", "names"),
    [
        ({"allow": Picked(tags=("orders",))}, ["cancel_order"]),
        ({"allow": Picked(operations=("list*", "getP*"))}, ["listArticles", "getPicture"]),
        ({"allow": Picked(methods=("DELETE",))}, ["removeArticle"]),
        ({"allow": Picked(paths=("/articles",), methods=("GET",))}, ["listArticles"]),
        (
            {"allow": Picked(tags=("articles",)), "deny": Picked(tags=("admin",))},
            ["listArticles", "getArticle", "addPicture"],
        ),
        ({"deny": Picked(paths=("/articles*",))}, ["cancel_order"]),
    ],
)
def test_selection(reading: Any, names: list[str]) -> None:
    found = compiled("shop.yaml", **reading)
    assert [tool.name for tool in found.tools] == names
    assert found.unused == ()


def test_words_of_a_selection_that_nothing_has_are_told() -> None:
    found = compiled("shop.yaml", allow=Picked(tags=("articles", "artcles"), operations=("list*", "drop*")))
    assert found.unused == ("allow.operations: drop*", "allow.tags: artcles")


def test_names_are_unique_short_and_the_same_whatever_is_chosen() -> None:
    operation: dict[str, Any] = {"operationId": "same", "responses": {}}
    long = {"operationId": "x" * 100, "responses": {}}
    data = document(
        {
            "/a": {"get": operation},
            "/b": {"get": operation},
            "/c": {"get": long},
            "/d/{e}": {"delete": {"responses": {}}},
        }
        | {"/f g/(h)": {"get": {"operationId": "__", "responses": {}}}}
    )
    first = [tool.name for tool in tools_of(read(data), Reading()).tools]
    second = [tool.name for tool in tools_of(read(data), Reading(deny=Picked(paths=("/a",)))).tools]
    assert len(set(first)) == 4
    assert all(len(name) <= MAX_NAME for name in first)
    assert first[1:] == second
    assert first[0].startswith("same_")
    assert first[3] == "get_f_g_h"


# ---- servers


def test_where_calls_go() -> None:
    data = (FIXTURES / "shop.yaml").read_bytes()

    def target(**reading: Any) -> tuple[str, bytes]:
        found = tools_of(read(data), Reading(**reading))
        return found.base, by_name(found)["getArticle"].operation.request(b'{"id":1}').target

    assert target() == ("http://127.0.0.1:8100", b"/v1/articles/1")
    assert target(base_url="https://shop.test/api/") == ("https://shop.test", b"/api/articles/1")
    assert target(url="http://127.0.0.1:8100/openapi.yaml") == ("http://127.0.0.1:8100", b"/v1/articles/1")
    with pytest.raises(OpenAPIError, match=r"^/servers/0/url: the document came from another place"):
        target(url="http://127.0.0.1:8101/openapi.yaml")


@pytest.mark.parametrize(
    ("servers", "reading", "base", "path"),
    [
        ([{"url": "/v2/"}], {"url": "https://a.test:8443/docs/openapi.json?x=1"}, "https://a.test:8443", b"/v2/x"),
        ([{"url": "../v3"}], {"url": "https://a.test/docs/openapi.json"}, "https://a.test", b"/v3/x"),
        ([], {"url": "https://a.test/docs/openapi.json"}, "https://a.test", b"/x"),
        (
            [{"url": "https://{r}.a.test/{v}", "variables": {"r": {"default": "eu"}, "v": {"default": "v1"}}}],
            {"variables": {"r": "us"}}, "https://us.a.test", b"/v1/x",
        ),
    ],
)  # fmt: skip
def test_servers_and_their_variables(servers: Any, reading: Any, base: str, path: bytes) -> None:
    found = tools_of(read(document({"/x": {"get": {"responses": {}}}}, servers=servers)), Reading(**reading))
    assert (found.base, found.tools[0].operation.request(b"{}").target) == (base, path)


@pytest.mark.parametrize(
    ("servers", "reading", "problem"),
    [
        ([{"url": "/v1"}], {}, "/servers: the document names no server; write `base_url`"),
        ([{"url": "ftp://a.test"}], {}, "/servers/0/url: 'ftp://a.test' is not a URL like"),
        ([{"url": "http://u:p@a.test"}], {}, "/servers/0/url: "),
        ([{"url": "http://a.test?x=1"}], {}, "/servers/0/url: "),
        ([{"url": "http://{h}"}], {}, "/servers/0/variables/h: the variable has no default"),
        (
            [{"url": "http://{h}.test", "variables": {"h": {"default": "a", "enum": ["a", "b"]}}}],
            {"variables": {"h": "evil.test/"}}, "/servers/0/variables/h: 'evil.test/' is none of a, b",
        ),
        ({"url": "x"}, {}, "/servers: must be a list of objects"),
        ([{"url": 7}], {}, "/servers/0/url: must be text"),
        # A document from outside does not say where else the gateway goes.
        ([{"url": "http://169.254.169.254/"}], {"url": "https://a.test/o.json"}, "/servers/0/url: the document came"),
    ],
)  # fmt: skip
def test_servers_that_cannot_be_used(servers: Any, reading: Any, problem: str) -> None:
    with pytest.raises(OpenAPIError) as caught:
        tools_of(read(document({}, servers=servers)), Reading(**reading))
    assert str(caught.value).startswith(problem)


# ---- bad documents


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the document is empty"),
        (b"[]", "the document must be an object"),
        (b"a: [", "the document is neither JSON nor YAML: "),
        (b"\xff\xfe", "the document is not UTF-8"),
        (b'{"swagger": "2.0"}', "/swagger: this is Swagger 2.0; convert"),
        (b'{"openapi": "2.0"}', '/openapi: no OpenAPI 3 document: "openapi" must be'),
        (b"openapi: 3.0", "/openapi: no OpenAPI 3 document"),
        (b"a: &a [*a]", "there is no anchor 'a' above (line 1, column 8)"),
        (b"? [a]\n: 1", "a key must be text (line 1, column 3)"),
    ],
)
def test_what_is_no_document(data: bytes, problem: str) -> None:
    with pytest.raises(OpenAPIError) as caught:
        read(data)
    assert str(caught.value).startswith(problem)


def test_a_document_is_bounded() -> None:
    with pytest.raises(OpenAPIError, match="larger than 10 bytes"):
        read(b'{"openapi": "3.1.0"}', 10)
    bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    for last, name in zip("abcdefg", "bcdefgh", strict=True):
        bomb += f"{name}: &{name} [{','.join([f'*{last}'] * 10)}]\n"
    with pytest.raises(OpenAPIError, match="more than 2,000,000 values once aliases are unfolded"):
        read(bomb.encode())
    with pytest.raises(OpenAPIError, match="nested deeper"):
        read(b"a: " + b"[" * 200 + b"]" * 200)
    with pytest.raises(OpenAPIError, match="cannot be read"):
        read(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}")


def test_yaml_is_read_as_what_it_looks_like() -> None:
    data = b"openapi: 3.1.0\nx: {on: yes, a: 0x10, d: 2020-01-01, t: 12:30, n: ~, f: 1.5, 200: ok}\n"
    assert read(data).root["x"] == {
        "on": "yes", "a": 16, "d": "2020-01-01", "t": "12:30", "n": None, "f": 1.5, "200": "ok"
    }  # fmt: skip
    numbers = (
        b"openapi: 3.1.0\nx: [1234567890123456789, 1e999, .inf, -.nan, 0x12345678901234567, -123456789012345678]\n"
    )
    assert read(numbers).root["x"] == [
        1234567890123456789.0, "1e999", ".inf", "-.nan", "0x12345678901234567", -123456789012345678
    ]  # fmt: skip
    merged = read(b"openapi: 3.1.0\na: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n").root["b"]
    assert merged == {"y": 3, "x": 1}


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        ({"x": {}}, "/paths/x: a path must begin with a slash"),
        ({"/x": 7}, "/paths/~1x: must be an object"),
        ({"/x": {"get": []}}, "/paths/~1x/get: must be an object"),
        ({"/x": {"get": {"parameters": {}}}}, "/paths/~1x/get/parameters: must be a list"),
        ({"/x": {"get": {"parameters": [{"in": "query"}]}}}, "/paths/~1x/get/parameters/0/name: must be text"),
        ({"/x": {"get": {"parameters": [{"name": "a", "in": "body"}]}}}, "/paths/~1x/get/parameters/0/in: must be"),
        (
            {"/x": {"get": {"parameters": [{"name": "a", "in": "query", "style": "matrix"}]}}},
            "/paths/~1x/get/parameters/0/style: must be one of form, spaceDelimited, pipeDelimited, deepObject in",
        ),
        (
            {"/x": {"get": {"parameters": [{"name": "a b", "in": "header"}]}}},
            "/paths/~1x/get/parameters/0/name: 'a b' cannot be the name of a header",
        ),
        (
            {"/x": {"get": {"parameters": [{"name": "a", "in": "query", "schema": {"type": "strin"}}]}}},
            "/paths/~1x/get/parameters/0/schema/type: 'strin' is no type of JSON Schema",
        ),
        ({"/x": {"post": body({"$ref": "#/components/nope"})}}, f"{SCHEMA}/$ref: '#/components/nope' leads nowhere"),
        ({"/x": {"post": body({"$ref": "other.yaml#/A"})}}, f"{SCHEMA}/$ref: 'other.yaml#/A' leads to another"),
        ({"/x": {"post": body({"properties": []})}}, f"{SCHEMA}/properties: must be an object of schemas"),
        ({"/x": {"post": body({"maximum": "9"})}}, f"{SCHEMA}/maximum: must be a number"),
        ({"/x": {"post": body({"enum": []})}}, f"{SCHEMA}/enum: must be a list of values"),
        ({"/x": {"post": body({"allOf": {}})}}, f"{SCHEMA}/allOf: must be a list of schemas"),
        ({"/x": {"post": body({"items": 7})}}, f"{SCHEMA}/items: a schema must be an object"),
        ({"/a/../x": {"get": {}}}, "/paths/~1a~1..~1x/get: a path must not have"),
        ({"/a/%2e%2E/x": {"get": {}}}, "/paths/~1a~1%2e%2E~1x/get: a path must not have"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_pointer(paths: Any, problem: str) -> None:
    found = tools_of(read(document(paths)), Reading())
    assert found.tools == ()
    assert len(found.dropped) == 1
    assert found.dropped[0].startswith(problem)


def test_one_bad_operation_does_not_take_the_others_along() -> None:
    found = tools_of(read(document({"/x": {"get": [], "post": {"responses": {}}}})), Reading())
    assert [tool.name for tool in found.tools] == ["post_x"]


# ---- arguments


def test_properties_of_a_body_are_arguments_and_anything_else_is_one_argument() -> None:
    flat = one(body({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}))["inputSchema"]
    assert (list(flat["properties"]), flat["required"]) == (["a"], ["a"])
    optional = one(body({"type": "object", "properties": {"a": {}}, "required": ["a"]}, required=False))["inputSchema"]
    assert "required" not in optional
    for schema in (
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        True,
    ):
        assert list(one(body(schema))["inputSchema"]["properties"]) == ["body"]


def test_what_the_gateway_sets_is_no_argument() -> None:
    parameters = [
        {"name": name, "in": place, "required": True, "schema": {"type": "string"}}
        for name, place in (
            ("Authorization", "header"), ("Host", "header"), ("X-Forwarded-For", "header"), ("X-Team", "header"),
            ("X-Key", "header"), ("Content-Length", "header"), ("X-Mine", "header"), ("sid", "cookie"),
        )
    ]  # fmt: skip
    data = document(
        {"/x": {"get": {"parameters": parameters, "responses": {}}}},
        components={"securitySchemes": {"k": {"type": "apiKey", "in": "header", "name": "x-key"}}},
    )
    found = tools_of(read(data), Reading(headers=frozenset({"x-team"}), credentials=frozenset({"k"})))
    assert list(json.loads(found.tools[0].raw)["inputSchema"]["properties"]) == ["X-Mine", "sid"]


def test_security_is_the_first_that_can_be_met() -> None:
    schemes = {name: {"type": "http", "scheme": "bearer"} for name in "abc"}

    def security(wanted: Any, *known: str, root: Any = None) -> tuple[str, ...]:
        operation = {"responses": {}} | ({} if wanted is None else {"security": wanted})
        more = {} if root is None else {"security": root}
        data = document({"/x": {"get": operation}}, components={"securitySchemes": schemes}, **more)
        return tools_of(read(data), Reading(credentials=frozenset(known))).tools[0].security

    assert security([{"a": []}, {"b": []}], "b") == ("b",)
    assert security([{"a": [], "b": []}, {"c": []}], "a", "c") == ("c",)
    assert security([{}, {"a": []}], "a") == ("a",)
    assert security([{"a": []}]) == ()
    assert security(None, "a", root=[{"a": []}]) == ("a",)
    assert security([], "a", root=[{"a": []}]) == ()
    with pytest.raises(OpenAPIError, match=r"there is no security scheme 'd'; there are: a, b, c"):
        security(None, "d")


def test_an_output_schema_is_there_when_every_success_has_it() -> None:
    json_of = lambda schema: {"description": "", "content": {"application/json": {"schema": schema}}}  # noqa: E731
    obj = {"type": "object", "properties": {"a": {}}}
    assert "outputSchema" in one({"responses": {"200": json_of(obj), "201": json_of(obj), "404": json_of({})}})
    assert "outputSchema" not in one({"responses": {"200": json_of(obj), "204": {"description": ""}}})
    assert "outputSchema" not in one({"responses": {"200": json_of({})}})
    assert "outputSchema" in one({"responses": {"default": json_of(obj)}})
    broken = tools_of(read(document({"/x": {"get": {"responses": {"200": json_of({"type": "no"})}}}})), Reading())
    assert len(broken.tools) == 1
    assert broken.dropped[0].endswith("tools that answer with it are without an output schema")
    found = tools_of(read(document({"/x": {"get": {"responses": {"200": json_of(obj)}}}})), Reading(output=False))
    assert not found.tools[0].structured


# ---- anything

KEYS = st.sampled_from(
    [
        "openapi", "paths", "servers", "url", "components", "schemas", "securitySchemes", "parameters", "name", "in",
        "schema", "$ref", "type", "properties", "required", "items", "allOf", "oneOf", "get", "post", "/a", "/{b}", "b",
        "requestBody", "content", "application/json", "multipart/form-data", "responses", "200", "default", "enum",
        "additionalProperties", "nullable", "style", "explode", "tags", "operationId", "security", "variables", "x-mcp",
        "encoding", "contentType", "format", "description", "exclusiveMinimum", "examples",
    ]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 300), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        ["3.0.3", "3.1.0", "#", "#/components/schemas/b", "#/paths/~1a", "object", "string", "array", "path", "query",
         "header", "http://a.test", "/v1", "{b}", "form", "deepObject", "binary", "apiKey", "*", ""]
    ),
)  # fmt: skip
ANY = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=25
)
OPERATIONS = st.dictionaries(
    st.sampled_from(["parameters", "requestBody", "responses", "security", "x-mcp", "servers"]), ANY
)
DOCUMENTS = st.fixed_dictionaries(
    {
        "openapi": st.sampled_from(["3.0.3", "3.1.0"]),
        "paths": st.dictionaries(
            st.sampled_from(["/a", "/{b}", "/a/{b}.{c}"]),
            st.dictionaries(st.sampled_from(["get", "post", "parameters"]), OPERATIONS | ANY) | ANY,
        )
        | ANY,
    },
    optional={"servers": ANY, "components": st.dictionaries(KEYS, ANY) | ANY, "security": ANY, "info": ANY},
)


@given(DOCUMENTS | ANY, st.sampled_from(["", "http://a.test/x"]))
def test_no_document_does_more_than_be_refused(value: Any, base: str) -> None:
    try:
        found = tools_of(read(json.dumps(value).encode()), Reading(base_url=base))
    except OpenAPIError:
        return
    for tool in found.tools:
        said = json.loads(tool.raw)
        assert said["name"] == tool.name
        assert said["inputSchema"]["type"] == "object"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with suppress(OpenAPIError):
        read(data)


def test_limits_are_said() -> None:
    assert openapi_document.MAX_DOCUMENT == 32 << 20
    with pytest.raises(OpenAPIError, match="more than 10,000 operations"):
        tools_of(read(document({f"/{n}": {"get": {}} for n in range(10_001)})), Reading(allow=Picked(tags=("x",))))
