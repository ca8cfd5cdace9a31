"""The JSON Schema: valid, described, and true of the files that we hand out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import tollhouse.config
from tollhouse.config.parse import parse
from tollhouse.config.schema import schema

ROOT = Path(__file__).parents[3]
DEMO = Path(tollhouse.config.__file__).with_name("demo.yaml")
CASE_STUDY = ROOT / "examples" / "case-study" / "tollhouse.yaml"
CASE_ENV = {
    "PUBLIC_URL": "https://gateway.example.com",
    "GOOGLE_CLIENT_ID": "1.apps.example.com",
    "KNOWLEDGE_URL": "http://127.0.0.1:9001/mcp",
    "SLACK_URL": "http://127.0.0.1:9002/mcp",
    "ANTHROPIC_API_KEY": "sk-ant-1",
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def _properties(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        for name, field in node.get("properties", {}).items():
            yield f"{path}.{name}", field
        for key, inner in node.items():
            yield from _properties(inner, f"{path}/{key}")
    elif isinstance(node, list):
        for inner in node:
            yield from _properties(inner, path)


LACKING = {
    *(f"/$defs/ClaimsSpec.{name}" for name in ("user", "org", "email", "groups")),
    *(f"/$defs/KeySpec.{name}" for name in ("org", "email", "groups")),
}
"""Settings whose name says it all, or whose Spec's own description does. No new ones."""


def test_every_setting_is_described() -> None:
    assert {path for path, field in _properties(schema()) if not field.get("description")} <= LACKING


def test_it_is_json_and_has_no_noise() -> None:
    made = schema()
    text = json.dumps(made)
    assert '"title"' not in text.replace('"title": "Tollhouse configuration"', "", 1)
    timeout = made["$defs"]["ShutdownSpec"]["properties"]["min"]
    assert timeout["default"] == "10s"
    assert {"$ref": "#/$defs/reference"} in timeout["anyOf"]


@pytest.mark.parametrize("path,env", [(DEMO, {}), (CASE_STUDY, CASE_ENV)], ids=["demo", "case-study"])
def test_our_own_files_are_right(validator: jsonschema.Draft202012Validator, path: Path, env: dict[str, str]) -> None:
    text = path.read_text()
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []
    assert parse(text, str(path), env).config.mcp is not None


@pytest.mark.parametrize(
    "document",
    [
        {"server": {"listen": "127.0.0.1:1", "workers": "${N}", "max_body": "10MiB"}},
        {"server": {"listen": ["127.0.0.1:1", {"address": "127.0.0.1:2"}], "admin": None, "metrics": None}},
        {"mcp": {"servers": {"a": {"command": "x"}, "b": {"url": "http://x/mcp", "timeout": "${T}"}}}},
        {"routes": [{"name": "r", "to": "http://127.0.0.1:1", "strip_prefix": "${X}", "path": "/x/"}]},
    ],
)
def test_what_is_right_validates(validator: jsonschema.Draft202012Validator, document: dict[str, Any]) -> None:
    assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize(
    "document",
    [
        {"modles": []},
        {"server": {"workers": "four"}},
        {"server": {"max_body": "ten"}},
        {"server": {"shutdown": {"min": 10}}},
        {"providers": {"a": {"kind": "opnai"}}},
        {"mcp": {"servers": {"a": {"command": "x", "urll": "y"}}}},
        {"models": [{"name": "a*b*", "targets": [{"provider": "p"}]}]},
    ],
)
def test_mistakes_do_not_validate(validator: jsonschema.Draft202012Validator, document: dict[str, Any]) -> None:
    assert not validator.is_valid(document)


def test_the_case_study_is_what_it_says() -> None:
    config = parse(CASE_STUDY.read_text(), str(CASE_STUDY), CASE_ENV).config
    assert config.mcp is not None
    assert set(config.mcp.servers) == {"knowledge", "slack"}
    assert config.authenticate is not None
    assert config.authenticate.jwt[0].audiences == ("https://gateway.example.com/mcp",)
    assert set(config.telemetry.metrics.labels) == {"user_email", "org", "product"}
    assert config.timeout is not None
    assert {config.timeout.total, config.models[0].timeout.total} == {300.0}
    snippet = json.loads((CASE_STUDY.parent / "mcp.json").read_text())
    assert snippet["mcpServers"]["company"]["url"] == f"{config.server.public_url}{config.mcp.path}"
