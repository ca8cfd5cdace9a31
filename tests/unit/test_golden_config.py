"""What we hand out and what we promise about configuration passes `tollhouse check`: the file with every key, and every
YAML block of the documentation."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trustme
from joserfc.jwk import ECKey, RSAKey

from tollhouse.cli import main
from tollhouse.config.document import read
from tollhouse.config.schema import schema

ROOT = Path(__file__).parents[2]
EVERY_KEY = ROOT / "tests" / "golden" / "config" / "every-key.yaml"
ENVIRONMENT = (
    "ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "AZURE_API_KEY", "BEDROCK_API_KEY", "CI_KEY", "CLIENT_SECRET",
    "GEMINI_API_KEY", "GITHUB_TOKEN", "GROQ_API_KEY", "LEDGER_PASSWORD", "OPENAI_API_KEY", "REPORTS_KEY",
    "SHOP_TOKEN", "WEBHOOK_SECRET",
)  # fmt: skip


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the configurations name."""
    where = tmp_path_factory.mktemp("named")
    authority = trustme.CA()
    issued = authority.issue_cert("gateway.example.com", "127.0.0.1")
    authority.cert_pem.write_to_path(str(where / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(where / "cert.pem"))
    issued.private_key_pem.write_to_path(str(where / "key.pem"))
    keys = [ECKey.generate_key("P-256").as_dict(private=False)]
    for name, content in {"jwks.json": json.dumps({"keys": keys}), "model.gguf": "GGUF", "claude.key": "sk-1"}.items():
        (where / name).write_text(content)
    application = authority.issue_cert("application", key_type=trustme.KeyType.RSA)
    application.cert_chain_pems[0].write_to_path(str(where / "entra.pem"))
    application.private_key_pem.write_to_path(str(where / "entra.key"))
    account = {
        "type": "service_account",
        "client_email": "gateway@platform-1.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": RSAKey.generate_key(2048).as_pem(private=True).decode(),
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    (where / "account.json").write_text(json.dumps(account))
    schemes = {
        "key": {"type": "apiKey", "in": "header", "name": "x-key"},
        "login": {"type": "http", "scheme": "basic"},
        "bearer": {"type": "http", "scheme": "bearer"},
        "oauth": {"type": "oauth2", "flows": {}},
    }
    things = {"get": {"operationId": "listThings", "tags": ["things"]}, "delete": {"operationId": "dropThings"}}
    api = {"openapi": "3.1.0", "paths": {"/things": things}, "components": {"securitySchemes": schemes}}
    servers = [{"url": "https://{region}.example.com", "variables": {"region": {"default": "us"}}}]
    for name in ("api.json", "shop.json"):
        (where / name).write_text(json.dumps({**api, "servers": servers}))
    (where / "platform.token").write_text("a-token")
    (where / "answer.json").write_text(json.dumps({"type": "object", "required": ["answer"]}))
    (where / "policy.rego").write_text("package tollhouse\nallow if input.principal.user in data.staff\n")
    (where / "roles.json").write_text(json.dumps({"staff": ["ada"]}))
    return where


@pytest.fixture
def there(tmp_path: Path, named: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with those files, and an environment with the variables."""
    shutil.copytree(named, tmp_path, dirs_exist_ok=True)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, f"secret-of-{name}")
    monkeypatch.setenv("OPERATOR_KEY", "0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("GOOGLE_CREDENTIALS", (named / "account.json").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(text: str, where: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `tollhouse check` says of it; empty when it is fine."""
    (where / "tollhouse.yaml").write_text(text)
    status = main(["check", "tollhouse.yaml"])
    said = capsys.readouterr()
    assert said.out == ("" if status else "tollhouse.yaml: fine\n")
    assert (status, bool(said.err)) in ((0, False), (2, True))
    return said.err


# ---- every key


class Keys:
    """The keys of a JSON Schema, and those that a document has."""

    def __init__(self, made: dict[str, Any]) -> None:
        self._definitions = made["$defs"]
        self._valid: dict[str, jsonschema.Draft202012Validator] = {}
        specs = {"": made, **self._definitions}
        self.all = {(name, key) for name, spec in specs.items() for key in spec.get("properties", ())}
        self.seen: set[tuple[str, str]] = set()

    def visit(self, node: Mapping[str, Any], value: Any, owner: str = "") -> None:
        """Note the keys of `value`, which is a `node`. owner: the Spec that the node stands in."""
        if "$ref" in node:
            owner = node["$ref"].removeprefix("#/$defs/")
            self.visit(self._definitions[owner], value, owner)
        for branch in node.get("anyOf", ()):
            if jsonschema.Draft202012Validator({**branch, "$defs": self._definitions}).is_valid(value):
                self.visit(branch, value, owner)
        if isinstance(value, dict):
            properties = node.get("properties", {})
            for key in properties.keys() & value.keys():
                self.seen.add((owner, key))
                self.visit(properties[key], value[key], owner)
            for named in (node.get("additionalProperties"), *node.get("patternProperties", {}).values()):
                if isinstance(named, dict):
                    for inner in value.values():
                        self.visit(named, inner, owner)
        elif isinstance(value, list):
            for entry in value:
                self.visit(node.get("items", {}), entry, owner)


def test_the_golden_file_sets_every_key_of_the_schema() -> None:
    made = schema()
    document = read(EVERY_KEY.read_text(), EVERY_KEY.name).values
    assert [error.message for error in jsonschema.Draft202012Validator(made).iter_errors(document)] == []
    keys = Keys(made)
    keys.visit(made, document)
    assert sorted(keys.all - keys.seen) == []


def test_a_key_that_the_golden_file_lacks_would_be_found() -> None:
    made = schema()
    document = read(EVERY_KEY.read_text(), EVERY_KEY.name).values
    assert document is not None
    for checked in (document["routes"][0], document["models"][0]):
        del checked["health"]["check"]["path"]
    del document["mcp"]["servers"]["shop"]["url"]
    keys = Keys(made)
    keys.visit(made, document)
    missing = keys.all - keys.seen
    assert ("CheckSpec", "path") in missing
    assert ("HttpServer", "url") in missing
    assert ("StdioServer", "url") not in keys.all


def test_check_takes_every_key(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(there))
    assert problems(EVERY_KEY.read_text(), there, capsys) == ""
    assert sorted(os.listdir(there)) == sorted([*before, "tollhouse.yaml"])  # it has written nothing


# ---- the documentation

AROUND = {
    ("authenticate.md", "claims"): "authenticate:\n  jwt:\n    - issuer: a\n      audiences: [b]\n"
    "      jwks: https://127.0.0.1/jwks\n",
    ("guardrails.md", "guardrails"): "models: [{name: a, targets: [{provider: local}]}]\n",
    ("guardrails.md", "providers"): "mcp: {servers: {a: {command: npx}}}\n",
    ("cost.md", "subscriptions"): "ledger: sqlite:x.db\n",
    ("ledger.md", "journal"): "ledger: sqlite:x.db\n",
    ("ledger.md", "retention"): "ledger: sqlite:x.db\n",
    ("README.md", "github"): "mcp:\n  servers:\n",
    ("routes.md", "- name"): "routes:\n",
    ("routes.md", "strip_prefix"): "routes:\n  - name: a\n    path: /a\n    to: http://127.0.0.1:1\n",
    ("routes.md", "to"): "routes:\n  - name: a\n    path: /a\n",
}
"""What stands before a block that shows a part, by its file and the key it begins with."""

VARIANTS = {
    ("routes.md", "strip_prefix"): ("prefix|path|host", "strip_prefix|path|preserve_host", "strip_prefix|prefix|host")
}
"""Blocks that show what excludes each other side by side: the keys to leave out, each time others."""

PROVIDERS = (
    "providers: {openai: {kind: openai, api_key: x}, claude: {kind: anthropic, api_key: x}, ours: {kind: local}, "
    "local: {kind: local}}\n"
)


def blocks() -> Iterator[Any]:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *(ROOT / "examples").rglob("*.md")):
        text = path.read_text()
        for found in re.finditer(r"^```ya?ml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, found.start()) + 1
            yield pytest.param(path.name, found[1], id=f"{path.name}:{line}")


@pytest.mark.parametrize("file,block", list(blocks()))
def test_check_takes_what_the_documentation_shows(
    file: str, block: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begins = re.match(r"\s*((?:- )?\w+)", block)
    shown = (file, begins[1] if begins is not None else "")
    text = AROUND.get(shown, "") + re.sub("/run/secrets/[a-z0-9-]+", "claude.key", block)
    if "providers:" not in text:
        text += PROVIDERS
    for leave_out in VARIANTS.get(shown, ("no key",)):
        variant = re.sub(rf"^ *(?:{leave_out}):.*\n", "", text[len(AROUND.get(shown, "")) :], flags=re.MULTILINE)
        assert problems(AROUND.get(shown, "") + variant, there, capsys) == ""
