"""`server.admin`: off unless it is asked for, never open by mistake, and no operator's key in any message."""

from hashlib import sha256
from pathlib import Path

import pytest
import trustme

from tollhouse.cli import main
from tollhouse.config.parse import parse
from tollhouse.config.server import AdminSpec
from tollhouse.core.errors import ConfigError

KEY = "an-operators-key-of-32-characters"


def admin(text: str) -> AdminSpec | None:
    return parse(f"server: {{admin: {text}}}\n", "t.yaml", {}).config.server.admin


def said(text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        admin(text)
    assert "operators-key" not in str(refused.value)
    return str(refused.value)


def test_it_is_off_unless_it_has_an_address() -> None:
    assert parse("routes: []\n", "t.yaml", {}).config.server.admin is None
    assert admin("null") is None
    assert "address" in said("{}")


def test_an_address_alone_stands_for_the_whole() -> None:
    assert admin("127.0.0.1:15000") == admin("{address: '127.0.0.1:15000'}")
    spec = admin("'[::1]:15000'")
    assert spec is not None
    assert (spec.address, spec.keys, spec.hosts, spec.tls) == ("[::1]:15000", (), (), None)
    for wrong in ("15000", "true", "[127.0.0.1:15000]", "nonsense"):
        assert "not an address" in said(wrong)


def test_keys_are_known_by_their_digests_and_say_nothing_of_themselves() -> None:
    digest = sha256(b"another").hexdigest()
    spec = admin(
        f"{{address: ':1', hosts: [a.b], keys: [{{name: eve, key: {KEY}}}, {{name: ops, key_hash: {digest}}}]}}"
    )
    assert spec is not None
    assert [one.digest for one in spec.keys] == [sha256(KEY.encode()).digest(), sha256(b"another").digest()]
    assert KEY not in repr(spec)
    assert KEY not in spec.model_dump_json()


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("[{name: eve}]", "give either `key` or `key_hash`"),
        (f"[{{name: eve, key: {KEY}, key_hash: {'ab' * 32}}}]", "give either `key` or `key_hash`"),
        ("[{name: eve, key: operators-key}]", "32 visible characters or more"),
        (f"[{{name: eve, key: '{KEY} {KEY}'}}]", "32 visible characters or more"),
        (f"[{{name: eve, key: {KEY}é}}]", "32 visible characters or more"),
        (f"[{{name: eve, key_hash: {'AB' * 32}}}]", "regular expression"),
        (f"[{{name: 'e v', key: {KEY}}}]", "regular expression"),
        (f"[{{name: eve, key: {KEY}}}, {{name: eve, key: {KEY}x}}]", "two keys are called `eve`"),
        (f"[{{name: eve, key: {KEY}}}, {{name: bob, key: {KEY}}}]", "two operators have the same key"),
    ],
)
def test_keys_that_are_none(keys: str, why: str) -> None:
    assert why in said(f"{{address: '127.0.0.1:1', keys: {keys}}}")


@pytest.mark.parametrize("address", ["0.0.0.0:15000", "[::]:15000", ":15000"])
def test_every_interface_needs_a_name_to_be_called_by(address: str) -> None:
    assert "say which in `hosts`" in said(f"'{address}'")
    assert admin(f"{{address: '{address}', hosts: ['*.ops.example.com']}}") is not None


def test_check_looks_at_its_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    (tmp_path / "key.pem").write_text("no key")
    file = tmp_path / "t.yaml"
    file.write_text("server: {admin: {address: '127.0.0.1:0', tls: {cert: cert.pem, key: key.pem}}}\nroutes: []\n")
    assert main(["check", str(file)]) == 2
    assert "server.admin.tls.key" in capsys.readouterr().err
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    assert main(["check", str(file)]) == 0
